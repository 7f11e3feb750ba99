"""Translation between OpenAI Responses, Anthropic Messages and Chat Completions: pure functions over JSON.

The model server is spoken to in Chat Completions; what comes in is one of the three dialects. One that has Responses
itself may be sent these as they are: passed_request, passed_reply, passed_stream.

    dialect      request                      reply                   stream
    Responses    responses_request            responses_reply         responses_stream
    Messages     messages_request             messages_reply          messages_stream
    Chat         chat                         chat                    streams

Invariant: nothing that a request says is dropped silently. What the server can do is translated; what changes nothing
for it (hints to a vendor's billing, caching or storage) is listed in `NO_EFFECT` of the module that ignores it; all
else is refused as `WireError`, naming the field. Explicit nulls are fields left out. Inputs are never changed.
"""
