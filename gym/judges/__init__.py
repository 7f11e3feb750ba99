"""Judges: models that a verifier asks. One module for each kind, a registry, and the desk that sends questions."""
