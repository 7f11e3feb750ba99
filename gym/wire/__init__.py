"""Translation between OpenAI Responses, Anthropic Messages and Chat Completions: pure functions over JSON.

The model server is spoken to in Chat Completions; what comes in is one of the three dialects. One that has Responses
itself may be sent these as they are: `passthrough`.

    responses/    OpenAI Responses        request, items, reply, stream
    messages/     Anthropic Messages      request, reply, stream
    chat/         Chat Completions        request, messages, completion, chunks, stream
    passthrough/  Responses as they are   request, reply, stream
    parsers/      from a model's text to its tool calls and reasoning

Invariant: nothing that a request says is dropped silently. What the server can do is translated; what changes nothing
for it (hints to a vendor's billing, caching or storage) is listed in `NO_EFFECT` of the module that ignores it; all
else is refused as `WireError`, naming the field. Explicit nulls are fields left out. Inputs are never changed.
"""
