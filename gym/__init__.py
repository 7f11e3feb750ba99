"""The model of a rollout: tasks, environments, agents, trajectories, rewards, and the state they live in.

Imports neither Celery, FastAPI nor Ray; `workers` and `api` build on this package, never the other way.
"""
