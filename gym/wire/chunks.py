"""Reading the chunks of a streamed chat completion, and putting them together again.

`ChatAccumulator` rebuilds what the server would have answered without streaming, token ids and log-probabilities
included. Explicit nulls of the chunks are left out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gym.jsontypes import JsonObject
from gym.wire.errors import BadCompletion

_ASSEMBLED = frozenset({"id", "object", "created", "model", "choices", "usage"})
_CHOICE_ASSEMBLED = frozenset({"index", "delta", "logprobs", "finish_reason", "token_ids"})


@dataclass(frozen=True, slots=True)
class CallDelta:
    """A piece of the tool call at `index`; id and name come with its first piece."""

    index: int
    call_id: str
    name: str
    arguments: str


def choice_in(chunk: JsonObject) -> JsonObject | None:
    """A chunk's choice, `None` where it has none (usage at the end). Raises BadCompletion for an error chunk."""
    error = chunk.get("error")
    if error is not None or chunk.get("object") == "error":
        message = error.get("message") if isinstance(error, dict) else error or chunk.get("message")
        raise BadCompletion(f"the model server broke the stream off: {message}")
    choices = chunk.get("choices") or ()
    if not isinstance(choices, list | tuple) or any(not isinstance(choice, dict) for choice in choices):
        raise BadCompletion("the model server sent a chunk whose choices are no list of objects")
    if len(choices) > 1 or any(choice.get("index") for choice in choices):
        raise BadCompletion("the model server streams more than one choice")
    return choices[0] if choices else None


def reasoning_in(delta: JsonObject) -> str:
    """The piece of reasoning in a delta."""
    return delta.get("reasoning") or delta.get("reasoning_content") or ""


def calls_in(delta: JsonObject) -> list[CallDelta]:
    """The pieces of tool calls in a delta."""
    pieces = []
    for place, call in enumerate(delta.get("tool_calls") or ()):
        function = call.get("function") or {}
        index = call.get("index")
        pieces.append(
            CallDelta(
                place if index is None else index,
                call.get("id") or "",
                function.get("name") or "",
                function.get("arguments") or "",
            )
        )
    return pieces


@dataclass(slots=True)
class _Call:
    call_id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list)


class ChatAccumulator:
    """Collects chunks; `completion` is the whole answer, `finished` says whether the server came to its end."""

    def __init__(self) -> None:
        self._top: JsonObject = {}
        self._choice: JsonObject = {}
        self._usage: JsonObject | None = None
        self._role = "assistant"
        self._text: dict[str, list[str]] = {}
        self._calls: dict[int, _Call] = {}
        self._token_ids: list[int] | None = None
        self._logprobs: list[JsonObject] | None = None
        self._finish_reason: str | None = None

    @property
    def finished(self) -> bool:
        """Whether a finish reason has come; a stream that ends before was cut."""
        return self._finish_reason is not None

    def feed(self, chunk: JsonObject) -> None:
        """Add a decoded chunk. Raises BadCompletion for an error in mid-stream."""
        choice = choice_in(chunk)
        for name, value in chunk.items():
            if value is not None and (name not in _ASSEMBLED or name in ("id", "created", "model")):
                self._top[name] = value
        if chunk.get("usage") is not None:
            self._usage = chunk["usage"]
        if choice is not None:
            self._feed_choice(choice)

    def _feed_choice(self, choice: JsonObject) -> None:
        for name, value in choice.items():
            if value is not None and name not in _CHOICE_ASSEMBLED:
                self._choice[name] = value
        delta = choice.get("delta") or {}
        self._role = delta.get("role") or self._role
        for name in ("reasoning", "reasoning_content", "content", "refusal"):
            if delta.get(name):
                self._text.setdefault(name, []).append(delta[name])
        for piece in calls_in(delta):
            call = self._calls.setdefault(piece.index, _Call())
            call.call_id = call.call_id or piece.call_id
            call.name = call.name or piece.name
            call.arguments.append(piece.arguments)
        if choice.get("token_ids") is not None:
            self._token_ids = [*self._token_ids, *choice["token_ids"]] if self._token_ids else list(choice["token_ids"])
        entries = (choice.get("logprobs") or {}).get("content")
        if entries is not None:
            self._logprobs = self._logprobs or []
            self._logprobs += entries
        self._finish_reason = choice.get("finish_reason") or self._finish_reason

    def completion(self) -> JsonObject:
        """The completion so far; `finish_reason` is null until the stream has come to its end."""
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
        message: JsonObject = {"role": self._role}
        texts = {name: "".join(pieces) for name, pieces in self._text.items()}
        if "content" not in texts:
            message["content"] = None if self._calls or "refusal" in texts else ""
        message |= texts
        if self._calls:
            message["tool_calls"] = [_tool_call(self._calls[index]) for index in sorted(self._calls)]
        return message


def _tool_call(call: _Call) -> dict[str, Any]:
    function = {"name": call.name, "arguments": "".join(call.arguments)}
    return {"id": call.call_id, "type": "function", "function": function}
