"""Upkeep of active batches: takes back what got lost, audits the ledger, retires what has ended."""
