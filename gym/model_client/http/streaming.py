"""Streamed chat completions: chunks are passed on as they arrive, and accumulated to the whole answer.

Invariant: `ChatAccumulator` reads a chunk before it is passed on, so the whole contains all that the caller saw.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import orjson

from gym.jsontypes import JsonObject
from gym.model_client.http.connection_pool import HttpResponse
from gym.plain import exact_json
from gym.wire.chat.chunks import ChatAccumulator
from gym.wire.chat.stream import CUT
from gym.wire.errors import BadCompletion
from gym.wire.passthrough.reply import final_response
from gym.wire.sse import SseDecoder

# Receives the chunks that arrived together; reading from the server pauses until it returns.
OnChunks = Callable[[list[JsonObject]], Awaitable[None]]

_DONE = b"[DONE]"


def streamed(body: JsonObject, options: JsonObject | None) -> JsonObject:
    """Return a chat request for a stream with usage at its end; `options` are the caller's `stream_options`."""
    return {**body, "stream": True, "stream_options": {**(options or {}), "include_usage": True}}


async def read_stream(response: HttpResponse, on_chunks: OnChunks) -> JsonObject:
    """Return the whole completion. Raises BadCompletion for an error in the stream or a premature end."""
    whole = ChatAccumulator()

    async def read(chunks: list[JsonObject]) -> None:
        for chunk in chunks:
            whole.feed(chunk)
        await on_chunks(chunks)

    await read_events(response, read)
    if not whole.finished:
        raise BadCompletion(CUT)
    return whole.completion()


async def read_response(response: HttpResponse, on_events: OnChunks) -> JsonObject:
    """Return the whole response of a Responses stream. Raises BadCompletion for a failure or a premature end.

    The event that carries the failure is not passed on: the reader of the events reports the end of the stream itself.
    """
    whole: JsonObject | None = None

    async def read(events: list[JsonObject]) -> None:
        nonlocal whole
        for event in events:
            whole = final_response(event) or whole
        await on_events(events)

    await read_events(response, read)
    if whole is None:
        raise BadCompletion(CUT)
    return whole


async def read_events(response: HttpResponse, on_events: OnChunks) -> None:
    """Pass on the events of a stream, which are JSON objects, until its end. Raises BadCompletion."""
    decoder = SseDecoder()
    done = False
    async for received in response.iter_any():
        events = []
        for data in decoder.feed(received):
            if data == _DONE:
                done = True
                break
            events.append(_json(data))
        if events:
            await on_events(events)
        if done:
            break


def chunks_of(completion: JsonObject) -> list[JsonObject]:
    """Split a completion into the chunks of a stream: one with the message, then the usage."""
    [choice] = completion["choices"]
    message = dict(choice["message"])
    if message.get("tool_calls"):
        message["tool_calls"] = [{"index": place, **call} for place, call in enumerate(message["tool_calls"])]
    top = {name: value for name, value in completion.items() if name not in ("choices", "usage")}
    top["object"] = "chat.completion.chunk"
    body = {name: value for name, value in choice.items() if name != "message"}
    return [
        {**top, "choices": [{**body, "index": 0, "delta": message}]},
        {**top, "choices": [], "usage": completion.get("usage")},
    ]


def _json(data: bytes) -> JsonObject:
    try:
        chunk = exact_json.loads(data)
    except orjson.JSONDecodeError as error:
        raise BadCompletion("the model server streams something that is no JSON") from error
    if not isinstance(chunk, dict):
        raise BadCompletion("the model server streams something that is no JSON object")
    return chunk
