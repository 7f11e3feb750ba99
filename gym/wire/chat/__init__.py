"""Chat Completions: requests, messages, completions, chunks, streams."""
