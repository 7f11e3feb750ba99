"""Comparison of the ledger with what workers hold and with itself, and its repair."""
