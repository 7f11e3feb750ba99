"""A farm on one machine: its processes, their supervisor, and the dashboard."""
