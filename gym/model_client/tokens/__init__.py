"""Exact token ids in and out of model servers; nothing is re-tokenised."""
