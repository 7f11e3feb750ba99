"""The dispatcher: decides which rollouts go next, sends them to Celery, and recovers those that got lost."""
