"""Audit of the ledger against its contents and its workers, and its repair."""
