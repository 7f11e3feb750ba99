"""Agents that are not the farm's own: a service, a program, a program in a sandbox, and the keys they call with."""
