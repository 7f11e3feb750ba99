"""Translation of a chat completion's chunks into events of the caller's dialect, one by one.

`start` comes first, `feed` for each chunk, `finish` when the server has said `[DONE]`, or `fail` at any point instead;
all are pure. Nothing may be sent after `finish` or `fail` but `tail`.
"""

from __future__ import annotations

from typing import Protocol

from gym.jsontypes import JsonObject
from gym.wire import sse
from gym.wire.chat.chunks import CallDelta, StreamedCalls, choice_in, delta_of
from gym.wire.chat.completion import NO_ARGUMENTS, as_object
from gym.wire.chat.request import shown_choice, without_capture
from gym.wire.errors import BadCompletion

Event = tuple[str | None, JsonObject]  # the event's name, which Chat Completions has not, and its data

CUT = "the model server's stream ended before the answer did"


class StreamTranslator(Protocol):
    """One streamed answer in the caller's dialect."""

    tail: bytes

    def start(self) -> list[Event]:
        """Return the events before the first token."""

    def feed(self, chunk: JsonObject) -> list[Event]:
        """Return the events of a chunk. Raises BadCompletion for an error in mid-stream."""

    def finish(self) -> list[Event]:
        """Return the last events of the answer. Raises BadCompletion if the server did not finish it."""

    def fail(self, message: str) -> list[Event]:
        """Return the events that report a lost answer to the caller."""


def encode(events: list[Event]) -> bytes:
    """Return the events as bytes."""
    return b"".join([sse.event(name, data) for name, data in events])


class ChatStream:
    """Chat Completions as they arrive, without the farm's additions.

    Clients join the pieces of tool calls by `index` and glue ids together, so each call gets an index of its own and
    says its id once. A call without arguments gets an empty object at the end.
    """

    tail = sse.DONE

    def __init__(self, body: JsonObject) -> None:
        self._body = body
        self._with_usage = bool((body.get("stream_options") or {}).get("include_usage"))
        self._finished = False
        self._calls = StreamedCalls()

    def start(self) -> list[Event]:
        """Return no events."""
        return []

    def feed(self, chunk: JsonObject) -> list[Event]:
        """Return the chunk, unless it only reports usage that the caller did not ask for."""
        choice = choice_in(chunk)
        shown = without_capture(self._body, chunk)
        if not self._with_usage:
            shown.pop("usage", None)
            if choice is None:
                return []
        if choice is not None:
            self._finished = self._finished or choice.get("finish_reason") is not None
            shown["choices"] = [self._with_calls(shown_choice(self._body, choice))]
        return [(None, shown)]

    def _with_calls(self, choice: JsonObject) -> JsonObject:
        """Return the choice, its pieces of tool calls marked so that every client can distinguish the calls."""
        delta = as_object(choice.get("delta"), "delta")
        pieces: list[JsonObject] = []
        if delta.get("tool_calls"):
            for value, piece in zip(delta["tool_calls"], delta_of(choice).calls, strict=True):
                pieces.append(_marked(value, self._calls.add(piece)))
        if choice.get("finish_reason") is not None:
            pieces += [
                {"index": place, "function": {"arguments": NO_ARGUMENTS}}
                for place, call in zip(self._calls.places(), self._calls.in_order(), strict=True)
                if not call.pieces
            ]
        return {**choice, "delta": {**delta, "tool_calls": pieces}} if pieces else choice

    def finish(self) -> list[Event]:
        """Return no events: only `tail` follows."""
        if not self._finished:
            raise BadCompletion(CUT)
        return []

    def fail(self, message: str) -> list[Event]:
        """An error object, as vLLM sends it in mid-stream."""
        return [(None, {"error": {"message": message, "type": "server_error", "param": None, "code": 502}})]


def _marked(value: JsonObject, new: CallDelta) -> JsonObject:
    """A piece of a tool call with its place, and with its id and name only where they are new."""
    piece = {**value, "index": new.index}
    if not new.call_id:
        piece.pop("id", None)
    function = {**(value.get("function") or {})}
    if function.get("name") and not new.name:
        del function["name"]
    if function.get("arguments") is not None:
        function["arguments"] = new.arguments
    return {**piece, "function": function}
