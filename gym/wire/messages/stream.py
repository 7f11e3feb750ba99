"""A streamed chat completion as the events of an Anthropic Messages stream.

Order: message_start; for each block content_block_start, deltas, content_block_stop; message_delta with the stop reason
and the usage; message_stop. message_start waits for the first chunk, which says how long the prompt was.
Thinking and text are sent as they come. Tool calls are sent at the end of the answer: only then is it known that no
text belongs before them, and that their ids, names and arguments are whole; `ping` events say meanwhile that the answer
goes on. Arguments that are no JSON reach the client as the model wrote them.
Source: Anthropic's `RawMessageStreamEvent`.
"""

from __future__ import annotations

from typing import Any, Literal

from gym.jsontypes import JsonObject
from gym.trajectory import Usage
from gym.wire.chat.chunks import ChatAccumulator
from gym.wire.chat.completion import as_list, usage_of
from gym.wire.chat.stream import CUT, Event
from gym.wire.errors import BadCompletion
from gym.wire.messages.reply import to_message, usage_object

PIECES_PER_PING = 64
BlockKind = Literal["thinking", "text", "tool_use"]


class MessagesStream:
    """Feeds on chunks; see `gym.wire.chat.stream.StreamTranslator`."""

    tail = b""

    def __init__(self, body: JsonObject, *, message_id: str) -> None:
        self._body = body
        self._message_id = message_id
        self._started = False
        self._blocks = 0
        self._open: BlockKind | None = None
        self._answer = ChatAccumulator()
        self._held = 0  # pieces of tool calls that came

    def start(self) -> list[Event]:
        """Return no events yet: see the module's docstring."""
        return []

    def feed(self, chunk: JsonObject) -> list[Event]:
        """Return the events of a chunk. Raises BadCompletion for an error in mid-stream."""
        delta = self._answer.feed(chunk)
        events = [] if self._started else self._start(chunk)
        if delta is None:
            return events
        if delta.reasoning:
            events += self._grow("thinking", delta.reasoning)
        for name in ("content", "refusal"):
            if text := delta.texts.get(name):
                events += self._grow("text", text)
        if delta.calls:
            self._held += len(delta.calls)
            if self._held % PIECES_PER_PING < len(delta.calls):
                events.append(_event("ping"))
        return events

    def finish(self) -> list[Event]:
        """Send the tool calls, the stop reason and the usage. Raises BadCompletion if the answer has no end."""
        if not self._answer.finished:
            raise BadCompletion(CUT)
        message = to_message(self._body, self._answer.completion(), message_id=self._message_id)
        events: list[Event] = []
        uses = [block for block in message["content"] if block["type"] == "tool_use"]
        for block, call in zip(uses, self._answer.calls, strict=True):
            events += self._open_block("tool_use", {**block, "input": {}})
            events += [self._delta({"type": "input_json_delta", "partial_json": piece}) for piece in call.pieces]
        if self._open is None and not self._blocks:
            events += self._open_block("text", {"type": "text", "text": ""})
        events += self._close()
        stop = {"stop_reason": message["stop_reason"], "stop_sequence": message["stop_sequence"]}
        events.append(_event("message_delta", delta=stop, usage=message["usage"]))
        return [*events, _event("message_stop")]

    def fail(self, message: str) -> list[Event]:
        """An error event."""
        return [_event("error", error={"type": "api_error", "message": message})]

    def _start(self, chunk: JsonObject) -> list[Event]:
        self._started = True
        prompt_ids = chunk.get("prompt_token_ids")
        known = prompt_ids is not None
        usage = Usage(len(as_list(prompt_ids, "prompt_token_ids"))) if known else usage_of(chunk)
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

    def _open_block(self, kind: BlockKind, block: JsonObject) -> list[Event]:
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
