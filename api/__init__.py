"""The REST head, the model proxy and the command line."""
