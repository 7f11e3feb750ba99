"""The ledger of batches and rollouts, from submission to the feed of results."""
