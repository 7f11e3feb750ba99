"""Anthropic Messages translated to and from Chat Completions."""
