"""A scripted server with vLLM's API: `farm mock-model`."""
