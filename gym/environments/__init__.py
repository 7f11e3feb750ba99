"""The interface for authors of environments: base classes, tools, codecs, the registry."""
