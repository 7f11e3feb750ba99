"""What runs rollouts: the Celery app and its jobs, the dispatcher, and the worker's event loop."""
