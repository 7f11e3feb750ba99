"""A streamed chat completion as the events of a Responses API stream.

Order: response.created, response.in_progress; for each item output_item.added, for each of its parts
content_part.added, deltas, done, content_part.done; output_item.done; at the end response.completed, .incomplete or
.failed. `sequence_number` counts from 0. The last response is the one that `gym.wire.responses.reply` makes of the
whole answer.

Reasoning and text are sent as they come. Tool calls are sent at the end of the answer: only then is it known that
nothing belongs before them, and that their ids, names and arguments are whole. Reasoning that comes after text has
begun, and text after a refusal, are in the last response only.
Source: OpenAI's `ResponseStreamEvent`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from gym.jsontypes import JsonObject
from gym.wire.chat.chunks import ChatAccumulator, choice_in
from gym.wire.chat.completion import logprobs_of
from gym.wire.chat.stream import CUT, Event
from gym.wire.errors import BadCompletion
from gym.wire.responses.reply import (
    add_logprobs,
    build_response,
    id_prefix_of,
    logprobs,
    message_item,
    reasoning_item,
    reasoning_part,
    refusal_part,
    text_part,
    to_response,
)
from gym.wire.responses.request import wants_logprobs

PartKind = Literal["reasoning_text", "output_text", "refusal"]

_MAKE_PART = {"reasoning_text": reasoning_part, "output_text": text_part, "refusal": refusal_part}
_ORDER: tuple[PartKind, ...] = ("reasoning_text", "output_text", "refusal")


@dataclass(slots=True)
class _Open:
    """The item that grows. `pieces` are those of its open part."""

    item: JsonObject
    output_index: int
    part: PartKind
    pieces: list[str] = field(default_factory=list)

    @property
    def place(self) -> JsonObject:
        """Return the fields that place its events."""
        return {
            "item_id": self.item["id"],
            "output_index": self.output_index,
            "content_index": len(self.item["content"]),
        }


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
        self._answer = ChatAccumulator()
        self._done: list[JsonObject] = []  # items whose end was sent
        self._open: _Open | None = None
        self._entries: list[JsonObject] | None = [] if wants_logprobs(body) else None

    def start(self) -> list[Event]:
        """The response in its first state."""
        self._emit("response.created", {"response": self._unfinished("in_progress")})
        self._emit("response.in_progress", {"response": self._unfinished("in_progress")})
        return self._drain()

    def feed(self, chunk: JsonObject) -> list[Event]:
        """The events of a chunk. Raises BadCompletion for an error in mid-stream."""
        delta = self._answer.feed(chunk)
        self._model = chunk.get("model") or self._model
        if delta is None:
            return []
        entries: list[JsonObject] = []
        if self._entries is not None:
            entries = logprobs_of(choice_in(chunk) or {}) or []
            self._entries += entries
        if delta.reasoning:
            self._grow("reasoning_text", delta.reasoning, [])
        if text := delta.texts.get("content"):
            self._grow("output_text", text, entries)
        if refusal := delta.texts.get("refusal"):
            self._grow("refusal", refusal, [])
        return self._drain()

    def finish(self) -> list[Event]:
        """Send what is left and give the whole response. Raises BadCompletion if the answer has no end."""
        if not self._answer.finished:
            raise BadCompletion(CUT)
        completion = self._answer.completion()
        response = to_response(self._body, completion, response_id=self._response_id, created_at=self._created_at)
        pieces = iter([call.pieces for call in self._answer.calls])
        for item in response["output"]:
            if item["type"] == "function_call":
                self._send_call(item, next(pieces))
            else:
                self._end(item)
        self._emit(f"response.{response['status']}", {"response": response})
        return self._drain()

    def fail(self, message: str) -> list[Event]:
        """The response in state failed, with the items that were finished."""
        error = {"code": "server_error", "message": message}
        self._emit("response.failed", {"response": self._unfinished("failed", error=error)})
        return self._drain()

    def _grow(self, kind: PartKind, text: str, entries: list[JsonObject]) -> None:
        opened = self._part(kind)
        if opened is None:
            return
        opened.pieces.append(text)
        data = {**opened.place, "delta": text}
        if kind == "output_text":
            data["logprobs"] = logprobs(entries)
        self._emit(f"response.{kind}.delta", data)

    def _part(self, kind: PartKind) -> _Open | None:
        """The open part of this kind, begun where it is not; None where a later kind has begun."""
        opened = self._open
        if opened is not None:
            if opened.part == kind:
                return opened
            if _ORDER.index(opened.part) > _ORDER.index(kind):
                return None
            self._close_part(opened)
            if opened.part == "reasoning_text":
                self._close(opened, "completed")
                opened = None
        if opened is None:
            make = reasoning_item if kind == "reasoning_text" else message_item
            item = make(self._prefix, 0, [], "in_progress")
            opened = self._open = _Open(item, len(self._done), kind)
            self._emit(
                "response.output_item.added", {"output_index": opened.output_index, "item": {**item, "content": []}}
            )
        opened.part, opened.pieces = kind, []
        self._emit("response.content_part.added", {**opened.place, "part": _MAKE_PART[kind]("")})
        return opened

    def _close_part(self, opened: _Open) -> None:
        kind, text, place = opened.part, "".join(opened.pieces), opened.place
        part = _MAKE_PART[kind](text)
        opened.item["content"].append(part)
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

    def _close(self, opened: _Open, status: str) -> None:
        opened.item["status"] = status
        self._emit("response.output_item.done", {"output_index": opened.output_index, "item": opened.item})
        self._done.append(opened.item)
        self._open = None

    def _end(self, item: JsonObject) -> None:
        """Send what is left of an item of the whole answer with text: nothing, its end, or all of it."""
        if any(done["id"] == item["id"] for done in self._done):
            return
        opened = self._open
        if opened is None or opened.item["id"] != item["id"]:
            opened = self._part("reasoning_text" if item["type"] == "reasoning" else "output_text")
        if opened is not None:
            self._close_part(opened)
            self._close(opened, item["status"])

    def _send_call(self, item: JsonObject, pieces: list[str]) -> None:
        place: JsonObject = {"item_id": item["id"], "output_index": len(self._done)}
        begun = {**item, "arguments": "", "status": "in_progress"}
        self._emit("response.output_item.added", {"output_index": place["output_index"], "item": begun})
        for piece in pieces or [item["arguments"]]:
            self._emit("response.function_call_arguments.delta", {**place, "delta": piece})
        done = {**place, "name": item["name"], "arguments": item["arguments"]}
        self._emit("response.function_call_arguments.done", done)
        self._emit("response.output_item.done", {"output_index": place["output_index"], "item": item})
        self._done.append(item)

    def _emit(self, name: str, data: JsonObject) -> None:
        self._events.append((name, {"type": name, "sequence_number": self._sequence, **data}))
        self._sequence += 1

    def _drain(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _unfinished(self, status: Literal["in_progress", "failed"], *, error: JsonObject | None = None) -> JsonObject:
        return build_response(
            response_id=self._response_id,
            created_at=self._created_at,
            model=self._model,
            output=list(self._done),
            usage=None,
            request=self._body,
            status=status,
            error=error,
        )
