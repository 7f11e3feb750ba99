"""Reading the chunks of a streamed chat completion, and putting them together again.

`ChatAccumulator` rebuilds what the server would have answered without streaming, token ids and log-probabilities
included. Explicit nulls of the chunks are left out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gym.jsontypes import JsonObject
from gym.wire.chat.completion import as_list, as_object, as_text, logprobs_of
from gym.wire.errors import BadCompletion

_ASSEMBLED = frozenset({"object", "choices", "usage"})
_TEXTS = ("reasoning", "reasoning_content", "content", "refusal")
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
    choices = as_list(chunk.get("choices"), "choices")
    if not choices:
        return None
    choice = as_object(choices[0], "choice")
    if len(choices) > 1 or choice.get("index"):
        raise BadCompletion("the model server streams more than one choice")
    return choice


@dataclass(frozen=True, slots=True)
class Delta:
    """What a chunk adds: pieces of texts by their field, and of tool calls."""

    texts: dict[str, str]
    calls: list[CallDelta]

    @property
    def reasoning(self) -> str:
        """The piece of reasoning, under either of its names."""
        return self.texts.get("reasoning") or self.texts.get("reasoning_content") or ""


def delta_of(choice: JsonObject) -> Delta:
    """The delta of a chunk's choice. Raises BadCompletion."""
    delta = as_object(choice.get("delta"), "delta")
    texts = {name: text for name in _TEXTS if (text := as_text(delta.get(name), name))}
    calls = []
    if delta.get("tool_calls"):
        for place, value in enumerate(as_list(delta["tool_calls"], "tool_calls")):
            call = as_object(value, "tool call")
            function = as_object(call.get("function"), "tool call")
            index = call.get("index")
            calls.append(
                CallDelta(
                    index if isinstance(index, int) else place,
                    as_text(call.get("id"), "tool call's id"),
                    as_text(function.get("name"), "function's name"),
                    as_text(function.get("arguments"), "arguments"),
                )
            )
    return Delta(texts, calls)


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
            if value is not None and name not in _ASSEMBLED:
                self._top[name] = value
        if chunk.get("usage") is not None:
            self._usage = chunk["usage"]
        if choice is not None:
            self._feed_choice(choice)

    def _feed_choice(self, choice: JsonObject) -> None:
        for name, value in choice.items():
            if value is not None and name not in _CHOICE_ASSEMBLED:
                self._choice[name] = value
        delta = delta_of(choice)
        for name, text in delta.texts.items():
            self._text.setdefault(name, []).append(text)
        for piece in delta.calls:
            call = self._calls.setdefault(piece.index, _Call())
            call.call_id = call.call_id or piece.call_id
            call.name = call.name or piece.name
            call.arguments.append(piece.arguments)
        if choice.get("token_ids") is not None:
            self._token_ids = self._token_ids or []
            self._token_ids += as_list(choice["token_ids"], "token_ids")
        entries = logprobs_of(choice)
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
        message: JsonObject = {"role": "assistant"}
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
