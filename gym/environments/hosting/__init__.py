"""Where an environment instance runs: on the worker's event loop, in its threads, or in a process of its own."""
