"""Sandboxes for code that a model wrote; where none works, such code does not run."""
