"""OpenAI Responses translated to and from Chat Completions."""
