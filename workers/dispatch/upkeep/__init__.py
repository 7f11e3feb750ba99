"""Upkeep of active batches: takes lost rollouts back, audits the ledger, retires ended batches."""
