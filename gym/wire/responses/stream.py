"""A streamed chat completion as the events of a Responses API stream.

Order: response.created, response.in_progress; for each item output_item.added, for each of its parts
content_part.added, deltas, done, content_part.done; output_item.done; at the end response.completed, .incomplete or
.failed. `sequence_number` counts from 0. Items, their ids and the last response are those of `responses_reply`.
Source: OpenAI's `ResponseStreamEvent`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from gym.jsontypes import JsonObject
from gym.trajectory import Usage
from gym.wire.chat.chunks import CallDelta, choice_in, delta_of
from gym.wire.chat.completion import WrittenToolCall, finish_of, logprobs_of, usage_of
from gym.wire.chat.stream import CUT, Event
from gym.wire.errors import BadCompletion
from gym.wire.responses.reply import (
    INCOMPLETE_REASONS,
    Status,
    add_logprobs,
    build_response,
    call_item,
    id_prefix_of,
    logprobs,
    message_item,
    reasoning_item,
    reasoning_part,
    refusal_part,
    text_part,
)
from gym.wire.responses.request import wants_logprobs

PartKind = Literal["reasoning_text", "output_text", "refusal"]

_MAKE_PART = {"reasoning_text": reasoning_part, "output_text": text_part, "refusal": refusal_part}


@dataclass(slots=True)
class _Open:
    """The item that grows. `pieces` are those of its open part, or of a call's arguments."""

    item: JsonObject
    output_index: int
    call_index: int | None = None
    part: PartKind | None = None
    pieces: list[str] = field(default_factory=list)

    @property
    def place(self) -> JsonObject:
        """Where its events belong."""
        place: JsonObject = {"item_id": self.item["id"], "output_index": self.output_index}
        if "content" in self.item:
            place["content_index"] = len(self.item["content"])
        return place


class ResponsesStream:
    """Feeds on chunks; see `gym.wire.chat.stream.StreamTranslator`."""

    tail = b""

    def __init__(self, body: JsonObject, *, response_id: str, created_at: float) -> None:
        self._body = body
        self._response_id = response_id
        self._created_at = created_at
        self._prefix = id_prefix_of(response_id)
        self._model: str = body.get("model") or ""
        self._sequence = 0
        self._events: list[Event] = []
        self._done: list[JsonObject] = []
        self._open: _Open | None = None
        self._calls: set[int] = set()
        self._usage = Usage()
        self._finish_reason: str | None = None
        self._entries: list[JsonObject] | None = [] if wants_logprobs(body) else None

    def start(self) -> list[Event]:
        """The response in its first state."""
        self._emit("response.created", {"response": self._response("in_progress")})
        self._emit("response.in_progress", {"response": self._response("in_progress")})
        return self._drain()

    def feed(self, chunk: JsonObject) -> list[Event]:
        """The events of a chunk. Raises BadCompletion for an error in mid-stream."""
        choice = choice_in(chunk)
        self._model = chunk.get("model") or self._model
        if chunk.get("usage") is not None:
            self._usage = usage_of(chunk)
        if choice is None:
            return []
        delta = delta_of(choice)
        entries: list[JsonObject] = []
        if self._entries is not None:
            entries = logprobs_of(choice) or []
            self._entries += entries
        if delta.reasoning:
            self._grow("reasoning_text", delta.reasoning, [])
        if text := delta.texts.get("content"):
            self._grow("output_text", text, entries)
        if refusal := delta.texts.get("refusal"):
            self._grow("refusal", refusal, [])
        for piece in delta.calls:
            self._grow_call(piece)
        self._finish_reason = choice.get("finish_reason") or self._finish_reason
        return self._drain()

    def finish(self) -> list[Event]:
        """Close what is open and give the whole response. Raises BadCompletion if the answer has no end."""
        if self._finish_reason is None:
            raise BadCompletion(CUT)
        reason = INCOMPLETE_REASONS.get(finish_of({"finish_reason": self._finish_reason}))
        status: Status = "incomplete" if reason else "completed"
        if self._open is None and not self._done:
            self._part("output_text")
        self._close(status)
        final = self._response(status, incomplete_reason=reason, usage=self._usage)
        self._emit(f"response.{status}", {"response": final})
        return self._drain()

    def fail(self, message: str) -> list[Event]:
        """The response in state failed, with the items that were finished."""
        error = {"code": "server_error", "message": message}
        self._emit("response.failed", {"response": self._response("failed", error=error)})
        return self._drain()

    def _grow(self, kind: PartKind, text: str, entries: list[JsonObject]) -> None:
        opened = self._part(kind)
        opened.pieces.append(text)
        data = {**opened.place, "delta": text}
        if kind == "output_text":
            data["logprobs"] = logprobs(entries)
        self._emit(f"response.{kind}.delta", data)

    def _part(self, kind: PartKind) -> _Open:
        """The open part of this kind. A message goes on with a further part, all else begins a new item."""
        opened = self._open
        if opened is not None and opened.part == kind:
            return opened
        item_type = "reasoning" if kind == "reasoning_text" else "message"
        if opened is not None and opened.item["type"] == item_type:
            self._close_part(opened)
        else:
            make = reasoning_item if item_type == "reasoning" else message_item
            opened = self._add(make(self._prefix, self._begun(item_type), [], "in_progress"))
        opened.part = kind
        self._emit("response.content_part.added", {**opened.place, "part": _MAKE_PART[kind]("")})
        return opened

    def _grow_call(self, piece: CallDelta) -> None:
        opened = self._open
        if opened is None or opened.call_index != piece.index:
            if piece.index in self._calls:
                raise BadCompletion("the model server adds to a tool call after it began something else")
            self._calls.add(piece.index)
            number = self._begun("function_call")
            call = WrittenToolCall(piece.call_id or f"call_{self._prefix}_{number}", piece.name, "")
            opened = self._add(call_item(self._prefix, number, call, "in_progress"), call_index=piece.index)
        if piece.arguments:
            opened.pieces.append(piece.arguments)
            self._emit("response.function_call_arguments.delta", {**opened.place, "delta": piece.arguments})

    def _begun(self, item_type: str) -> int:
        """How many items of a type there are, after closing the open one."""
        self._close()
        return sum(item["type"] == item_type for item in self._done)

    def _add(self, item: JsonObject, *, call_index: int | None = None) -> _Open:
        self._open = _Open(item, len(self._done), call_index)
        shown = {**item, "content": []} if "content" in item else dict(item)
        self._emit("response.output_item.added", {"output_index": len(self._done), "item": shown})
        return self._open

    def _close_part(self, opened: _Open) -> None:
        if opened.part is None:
            return
        kind, text, place = opened.part, "".join(opened.pieces), opened.place
        part = _MAKE_PART[kind](text)
        opened.item["content"].append(part)
        opened.part, opened.pieces = None, []
        if kind == "refusal":
            done: JsonObject = {"refusal": text}
        elif kind == "reasoning_text":
            done = {"text": text}
        else:
            if self._entries is not None:
                add_logprobs([*self._done, opened.item], self._entries)
            done = {"text": text, "logprobs": part.get("logprobs", [])}
        self._emit(f"response.{kind}.done", {**place, **done})
        self._emit("response.content_part.done", {**place, "part": part})

    def _close(self, status: Status = "completed") -> None:
        opened = self._open
        if opened is None:
            return
        self._close_part(opened)
        item = opened.item
        if opened.call_index is not None:
            item["arguments"] = "".join(opened.pieces)
            data = {**opened.place, "name": item["name"], "arguments": item["arguments"]}
            self._emit("response.function_call_arguments.done", data)
        item["status"] = status
        self._emit("response.output_item.done", {"output_index": opened.output_index, "item": item})
        self._done.append(item)
        self._open = None

    def _emit(self, name: str, data: JsonObject) -> None:
        self._events.append((name, {"type": name, "sequence_number": self._sequence, **data}))
        self._sequence += 1

    def _drain(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _response(
        self,
        status: Status,
        *,
        incomplete_reason: str | None = None,
        usage: Usage | None = None,
        error: JsonObject | None = None,
    ) -> JsonObject:
        return build_response(
            response_id=self._response_id,
            created_at=self._created_at,
            model=self._model,
            output=list(self._done),
            usage=usage,
            request=self._body,
            status=status,
            incomplete_reason=incomplete_reason,
            error=error,
        )
