"""Environments that ship with the farm."""
