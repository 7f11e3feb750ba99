"""Which endpoint takes a call, and when: load balancing, stickiness, health, queueing, pauses."""
