"""Types of fields that settings and requests share: bounded ones, and secrets that are masked."""
