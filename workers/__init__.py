"""Celery workers, the dispatcher and the judge pool: the processes that run rollouts."""
