"""What is kept of a finished rollout: its record and its trajectory."""
