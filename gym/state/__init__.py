"""State in Redis: batches, rollouts, the log of results, leases, policies.

Invariant: every change of a rollout's state is one Lua script that compares (attempt, token) first, so a late,
duplicate or zombie writer changes nothing. All keys of a batch share a hash tag.
"""
