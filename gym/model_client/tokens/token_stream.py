"""Streamed generation from token ids: converts vLLM's chunks to those of a chat completion as they arrive.

Only for answers that need no parser; an answer with calls or reasoning to parse is not streamed.
Source: vLLM 0.32, `entrypoints/scale_out/token_in_token_out/serving.py` (serve_tokens_stream_generator).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from yarl import URL

from gym.jsontypes import JsonObject
from gym.model_client.http.streaming import OnChunks
from gym.wire.chat.chunks import ChatAccumulator, choice_in
from gym.wire.chat.stream import CUT
from gym.wire.errors import BadCompletion

Answered = tuple[int, str | None, bytes]  # status, `Retry-After`, body
Stream = Callable[[URL, JsonObject, OnChunks], Awaitable[Answered]]  # the body is empty if events were passed on

_OPTIONS = {"stream": True, "stream_options": {"include_usage": True}}


@dataclass(frozen=True, slots=True)
class StreamSink:
    """Sender of a streamed request and receiver of its chunks."""

    send: Stream
    on_chunks: OnChunks


@dataclass(slots=True)
class StreamedReply:
    """Result of a streamed generation, or `refused`. Without `texts` the server gave only tokens; no chunk was sent.

    `completion` lacks facts that only the caller knows: the prompt, and whether the model itself ended its turn.
    """

    completion: JsonObject
    texts: bool
    refused: Answered | None = None


async def generate_streamed(streamed: StreamSink, url: URL, request: JsonObject, head: JsonObject) -> StreamedReply:
    """Generate; `head` are the fields that all chunks share. Raises BadCompletion if the stream breaks."""
    whole, reply = ChatAccumulator(), StreamedReply({}, texts=True)
    first: list[JsonObject] = [_chunk(head, {"delta": {"role": "assistant", "content": ""}})]

    async def convert(events: list[JsonObject]) -> None:
        chunks = []
        for event in events:
            choice = choice_in(event)
            reply.texts = reply.texts and (choice is None or choice.get("text") is not None)
            chunk = _converted(head, event, choice)
            whole.feed(chunk)
            chunks.append(chunk)
        if reply.texts:
            await streamed.on_chunks(first + chunks)
            first.clear()

    answered = await streamed.send(url, request | _OPTIONS, convert)
    if answered[0] != 200:
        reply.refused = answered
    elif not whole.finished:
        raise BadCompletion(CUT)
    else:
        reply.completion = whole.completion()
    return reply


def _converted(head: JsonObject, event: JsonObject, choice: JsonObject | None) -> JsonObject:
    if choice is None:
        return {**_chunk(head, None), "usage": event.get("usage")}
    rest = {name: value for name, value in choice.items() if name != "text"}
    return _chunk(head, {**rest, "delta": {"content": choice.get("text") or ""}})


def _chunk(head: JsonObject, choice: JsonObject | None) -> JsonObject:
    return {**head, "object": "chat.completion.chunk", "choices": [] if choice is None else [{"index": 0, **choice}]}
