"""Sandboxes for code that a model wrote. If none works, such code does not run."""
