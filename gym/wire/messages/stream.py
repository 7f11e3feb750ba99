"""A streamed chat completion as the events of an Anthropic Messages stream.

Order: message_start; for each block content_block_start, deltas, content_block_stop; message_delta with the stop reason
and the usage; message_stop. message_start waits for the first chunk, which says how long the prompt was.
Arguments that are no JSON reach the client as the model wrote them, since they cannot be known before their end.
Source: Anthropic's `RawMessageStreamEvent`.
"""

from __future__ import annotations

from typing import Any, Literal

from gym.jsontypes import JsonObject
from gym.trajectory import Usage
from gym.wire.chat.chunks import CallDelta, choice_in, delta_of
from gym.wire.chat.completion import as_list, usage_of
from gym.wire.chat.stream import CUT, Event
from gym.wire.errors import BadCompletion
from gym.wire.messages.reply import stop_of, usage_object

BlockKind = Literal["thinking", "text"]


class MessagesStream:
    """Feeds on chunks; see `gym.wire.chat.stream.StreamTranslator`."""

    tail = b""

    def __init__(self, body: JsonObject, *, message_id: str) -> None:
        self._body = body
        self._message_id = message_id
        self._started = False
        self._blocks = 0
        self._open: BlockKind | int | None = None  # a number is a tool call's
        self._calls: set[int] = set()
        self._refused = False
        self._usage = Usage()
        self._finish_reason: str | None = None
        self._stopped_by: object = None

    def start(self) -> list[Event]:
        """Nothing yet: see the module's docstring."""
        return []

    def feed(self, chunk: JsonObject) -> list[Event]:
        """The events of a chunk. Raises BadCompletion for an error in mid-stream."""
        choice = choice_in(chunk)
        if chunk.get("usage") is not None:
            self._usage = usage_of(chunk)
        events = [] if self._started else self._start(chunk)
        if choice is None:
            return events
        delta = delta_of(choice)
        if delta.reasoning:
            events += self._grow("thinking", delta.reasoning)
        if text := delta.texts.get("content"):
            events += self._grow("text", text)
        if refusal := delta.texts.get("refusal"):
            self._refused = True
            events += self._grow("text", refusal)
        for piece in delta.calls:
            events += self._grow_call(piece)
        self._finish_reason = choice.get("finish_reason") or self._finish_reason
        self._stopped_by = choice.get("stop_reason") or self._stopped_by
        return events

    def finish(self) -> list[Event]:
        """Close what is open and say why the answer ended. Raises BadCompletion if it has no end."""
        if self._finish_reason is None:
            raise BadCompletion(CUT)
        choice: JsonObject = {"finish_reason": self._finish_reason, "stop_reason": self._stopped_by}
        has_calls = bool(self._calls)
        stop_reason, stop_sequence = stop_of(self._body, choice, has_calls=has_calls, refused=self._refused)
        events: list[Event] = []
        if self._open is None and not self._blocks:
            events += self._open_block("text", {"type": "text", "text": ""})
        events += self._close()
        events.append(
            _event(
                "message_delta",
                delta={"stop_reason": stop_reason, "stop_sequence": stop_sequence},
                usage=usage_object(self._usage),
            )
        )
        return [*events, _event("message_stop")]

    def fail(self, message: str) -> list[Event]:
        """An error event."""
        return [_event("error", error={"type": "api_error", "message": message})]

    def _start(self, chunk: JsonObject) -> list[Event]:
        self._started = True
        prompt_ids = chunk.get("prompt_token_ids")
        usage = self._usage if prompt_ids is None else Usage(len(as_list(prompt_ids, "prompt_token_ids")))
        message: JsonObject = {
            "id": self._message_id,
            "type": "message",
            "role": "assistant",
            "model": chunk.get("model") or self._body.get("model") or "",
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage_object(usage),
        }
        return [_event("message_start", message=message)]

    def _grow(self, kind: BlockKind, text: str) -> list[Event]:
        events: list[Event] = []
        if self._open != kind:
            block = {"type": kind, kind: ""}
            if kind == "thinking":
                block["signature"] = ""
            events += self._open_block(kind, block)
        return [*events, self._delta({"type": f"{kind}_delta", kind: text})]

    def _grow_call(self, piece: CallDelta) -> list[Event]:
        events: list[Event] = []
        if self._open != piece.index:
            if piece.index in self._calls:
                raise BadCompletion("the model server adds to a tool call after it began the next one")
            call_id = piece.call_id or f"call_{self._message_id.removeprefix('msg_')}_{len(self._calls)}"
            self._calls.add(piece.index)
            events += self._open_block(
                piece.index, {"type": "tool_use", "id": call_id, "name": piece.name, "input": {}}
            )
        if piece.arguments:
            events.append(self._delta({"type": "input_json_delta", "partial_json": piece.arguments}))
        return events

    def _open_block(self, kind: BlockKind | int, block: JsonObject) -> list[Event]:
        events = self._close()
        self._open = kind
        return [*events, _event("content_block_start", index=self._blocks, content_block=block)]

    def _close(self) -> list[Event]:
        if self._open is None:
            return []
        events = []
        if self._open == "thinking":
            events.append(self._delta({"type": "signature_delta", "signature": self._message_id}))
        events.append(_event("content_block_stop", index=self._blocks))
        self._open = None
        self._blocks += 1
        return events

    def _delta(self, delta: JsonObject) -> Event:
        return _event("content_block_delta", index=self._blocks, delta=delta)


def _event(name: str, **data: Any) -> Event:
    return name, {"type": name, **data}
