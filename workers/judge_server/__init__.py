"""A small HTTP server for judges that give numbers: sentence embeddings and classifiers, on a CPU, with micro-batching.

It is independent: it needs the extra `judge`, not Celery, and publishes itself in Redis only if it is given one.
"""
