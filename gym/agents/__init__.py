"""Agents: the loops that drive an episode from its first model call to its end."""
