"""Reads the chunks of a streamed chat completion and joins them.

`ChatAccumulator` rebuilds the answer that the server would have given without streaming, token ids and
log-probabilities included. Explicit nulls of the chunks are left out. It is the only reader of tool calls' pieces: the
translators of streams use it, so the client's answer and the record agree.

Servers differ in how they send tool calls. Pieces belong to the call at their `index`, in any order. An id and a name
may come with any piece. A new id at an index in use begins another call, unless it comes with nothing but the rest of
the arguments: some servers make up a new id for each piece. Without an index, a known id names its call, an unknown
one begins a call, and a piece without either goes to the last one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from gym.jsontypes import JsonObject
from gym.wire.chat.completion import arguments_text, as_list, as_object, as_text, logprobs_of
from gym.wire.errors import BadCompletion

_ASSEMBLED = frozenset({"object", "choices", "usage"})
_TEXTS = ("reasoning", "reasoning_content", "content", "refusal")
_CHOICE_ASSEMBLED = frozenset({"index", "delta", "logprobs", "finish_reason", "token_ids"})


@dataclass(frozen=True, slots=True)
class CallDelta:
    """A piece of a tool call; absent fields are empty, and `index` is None if the server gave no index."""

    index: int | None
    call_id: str
    name: str
    arguments: str


def choice_in(chunk: JsonObject) -> JsonObject | None:
    """Return a chunk's choice, or `None` (usage at the end). Raises BadCompletion for an error chunk."""
    error = chunk.get("error")
    if error is not None or chunk.get("object") == "error":
        message = error.get("message") if isinstance(error, dict) else error or chunk.get("message")
        raise BadCompletion(f"the model server broke the stream off: {message}")
    choices = as_list(chunk.get("choices"), "choices")
    if not choices:
        return None
    choice = as_object(choices[0], "choice")
    if len(choices) > 1 or choice.get("index"):
        raise BadCompletion("the model server streams more than one choice")
    return choice


@dataclass(frozen=True, slots=True)
class Delta:
    """The additions of a chunk: pieces of texts by their field, and of tool calls."""

    texts: dict[str, str]
    calls: list[CallDelta]

    @property
    def reasoning(self) -> str:
        """The piece of reasoning, under either of its names."""
        return self.texts.get("reasoning") or self.texts.get("reasoning_content") or ""


def delta_of(choice: JsonObject) -> Delta:
    """Return the delta of a chunk's choice. Raises BadCompletion."""
    delta = as_object(choice.get("delta"), "delta")
    texts = {name: text for name in _TEXTS if (text := as_text(delta.get(name), name))}
    calls = []
    if delta.get("tool_calls"):
        pieces = as_list(delta["tool_calls"], "tool_calls")
        for place, value in enumerate(pieces):
            call = as_object(value, "tool call")
            function = as_object(call.get("function"), "tool call")
            index = call.get("index")
            if not isinstance(index, int) or isinstance(index, bool):
                index = place if len(pieces) > 1 else None
            calls.append(
                CallDelta(
                    index,
                    as_text(call.get("id"), "tool call's id"),
                    as_text(function.get("name"), "function's name"),
                    arguments_text(function.get("arguments")),
                )
            )
    return Delta(texts, calls)


@dataclass(slots=True)
class StreamedCall:
    """A tool call as far as its pieces have come; `pieces` are those of its arguments, none of them empty."""

    call_id: str = ""
    name: str = ""
    pieces: list[str] = field(default_factory=list)

    @property
    def arguments(self) -> str:
        """The arguments so far."""
        return "".join(self.pieces)

    def takes(self, piece: CallDelta) -> bool:
        """Return whether a piece that arrived for its place belongs to this call."""
        if not piece.call_id or not self.call_id or piece.call_id == self.call_id:
            return True
        return not piece.name and bool(piece.arguments) and not _is_json(self.arguments)


class StreamedCalls:
    """The tool calls of one streamed answer, distinguished as the module's docstring says."""

    def __init__(self) -> None:
        self._by_place: dict[int, StreamedCall] = {}  # the place is the index, or the next free one
        self._places: dict[int, int] = {}  # by index: the place of its latest call

    def __len__(self) -> int:
        return len(self._by_place)

    def in_order(self) -> list[StreamedCall]:
        """Return the calls in their order."""
        return [self._by_place[place] for place in self.places()]

    def places(self) -> list[int]:
        """Return the places of the calls, in order."""
        return sorted(self._by_place)

    def add(self, piece: CallDelta) -> CallDelta:
        """Add a piece to its call, and begin the call if it is new.

        Return the new part: the piece with its call's place as index, without an id or name that the call has already.
        """
        place = self._place_of(piece)
        call = self._by_place.setdefault(place, StreamedCall())
        new = CallDelta(place, "" if call.call_id else piece.call_id, "" if call.name else piece.name, piece.arguments)
        call.call_id = call.call_id or piece.call_id
        call.name = call.name or piece.name
        if piece.arguments:
            call.pieces.append(piece.arguments)
        return new

    def _place_of(self, piece: CallDelta) -> int:
        if piece.index is None:
            place = self._place_without_index(piece)
            if place is not None:
                return place
        else:
            place = self._places.get(piece.index)
            if place is not None and self._by_place[place].takes(piece):
                return place
        place = piece.index
        if place is None or place in self._by_place:
            place = max(self._by_place, default=-1) + 1
        if piece.index is not None:
            self._places[piece.index] = place
        return place

    def _place_without_index(self, piece: CallDelta) -> int | None:
        for place, call in self._by_place.items():
            if piece.call_id and call.call_id == piece.call_id:
                return place
        if not self._by_place:
            return None
        place, last = next(reversed(self._by_place.items()))
        begins = (piece.call_id and last.call_id) or (piece.name and last.name)
        return None if begins else place


class ChatAccumulator:
    """Collects chunks; `completion` is the whole answer, `finished` says whether the server finished it."""

    def __init__(self) -> None:
        self._top: JsonObject = {}
        self._choice: JsonObject = {}
        self._usage: JsonObject | None = None
        self._text: dict[str, list[str]] = {}
        self._calls = StreamedCalls()
        self._token_ids: list[int] | None = None
        self._logprobs: list[JsonObject] | None = None
        self._finish_reason: str | None = None

    @property
    def finished(self) -> bool:
        """Return whether a finish reason has arrived; a stream that ends before it was cut."""
        return self._finish_reason is not None

    @property
    def calls(self) -> list[StreamedCall]:
        """The tool calls in their order."""
        return self._calls.in_order()

    def feed(self, chunk: JsonObject) -> Delta | None:
        """Add a decoded chunk and return its delta, if it has one. Raises BadCompletion for an error in mid-stream."""
        choice = choice_in(chunk)
        for name, value in chunk.items():
            if value is not None and name not in _ASSEMBLED:
                self._top[name] = value
        if chunk.get("usage") is not None:
            self._usage = chunk["usage"]
        return None if choice is None else self._feed_choice(choice)

    def _feed_choice(self, choice: JsonObject) -> Delta:
        for name, value in choice.items():
            if value is not None and name not in _CHOICE_ASSEMBLED:
                self._choice[name] = value
        delta = delta_of(choice)
        for name, text in delta.texts.items():
            self._text.setdefault(name, []).append(text)
        for piece in delta.calls:
            self._calls.add(piece)
        if choice.get("token_ids") is not None:
            self._token_ids = self._token_ids or []
            self._token_ids += as_list(choice["token_ids"], "token_ids")
        entries = logprobs_of(choice)
        if entries is not None:
            self._logprobs = self._logprobs or []
            self._logprobs += entries
        self._finish_reason = choice.get("finish_reason") or self._finish_reason
        return delta

    def completion(self) -> JsonObject:
        """Return the completion so far; `finish_reason` is null until the stream has ended."""
        choice: JsonObject = {
            **self._choice,
            "index": 0,
            "message": self._message(),
            "finish_reason": self._finish_reason,
        }
        if self._logprobs is not None:
            choice["logprobs"] = {"content": self._logprobs}
        if self._token_ids is not None:
            choice["token_ids"] = self._token_ids
        whole: JsonObject = {**self._top, "object": "chat.completion", "choices": [choice]}
        if self._usage is not None:
            whole["usage"] = self._usage
        return whole

    def _message(self) -> JsonObject:
        message: JsonObject = {"role": "assistant"}
        texts = {name: "".join(pieces) for name, pieces in self._text.items()}
        if "content" not in texts:
            message["content"] = None if self._calls or "refusal" in texts else ""
        message |= texts
        if self._calls:
            message["tool_calls"] = [_tool_call(call) for call in self.calls]
        return message


def _tool_call(call: StreamedCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.call_id, "type": "function", "function": function}


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
