"""Agents: what drives an episode from the first model call to its end."""
