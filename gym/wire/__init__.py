"""Translation between OpenAI Responses, Anthropic Messages, Gemini and Chat Completions: pure functions over JSON.

The farm speaks Chat Completions with the model server, and accepts requests in four dialects. A server that has the
Responses API itself may be sent Responses requests as they are: `passthrough`.

    responses/    OpenAI Responses        request, items, reply, stream
    messages/     Anthropic Messages      request, reply, stream
    gemini/       Gemini                  request, contents, schemas, reply, stream
    chat/         Chat Completions        request, messages, completion, chunks, stream
    passthrough/  Responses as they are   request, reply, stream
    parsers/      from a model's text to its tool calls and reasoning

Invariant: no part of a request is dropped silently. Fields that the server supports are translated. Fields without an
effect on it (hints to a vendor's billing, caching or storage) are listed in the ignoring module's `NO_EFFECT`.
Others are refused as `WireError`, naming the field. Explicit nulls count as absent. Inputs are never changed.
"""
