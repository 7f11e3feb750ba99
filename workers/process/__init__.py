"""Parts that every worker process has: Celery app, event loop, lease, slots, commits, breaker cache."""
