"""Agents outside the farm: a service, a program, a program in a sandbox, and the keys they call with."""
