"""Responses calls passed through to a server that has the Responses API itself."""
