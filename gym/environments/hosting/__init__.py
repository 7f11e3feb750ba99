"""Hosting of environment instances: on the worker's event loop, in its threads, or in a separate process."""
