"""Reading a chat completion: the one choice, how it finished, what it said, what it cost.

Raises BadCompletion where the server's answer is not what Chat Completions promises.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from gym.jsontypes import JsonObject
from gym.trajectory import Usage
from gym.wire.errors import BadCompletion

Finish = Literal["stop", "max_tokens", "content_filter"]


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call as the model wrote it; `arguments` is its text, which may be no JSON."""

    call_id: str
    name: str
    arguments: str


def choice_of(completion: JsonObject) -> JsonObject:
    """The only choice of a completion."""
    choices = completion.get("choices")
    if not isinstance(choices, list) or len(choices) != 1:
        seen = f"{len(choices)} choices" if isinstance(choices, list) else "no choices"
        raise BadCompletion(f"the model server answered with {seen}, expected one")
    choice: JsonObject = choices[0]
    if not isinstance(choice, dict) or not isinstance(choice.get("message"), dict):
        raise BadCompletion("the model server's choice has no message")
    return choice


def finish_of(choice: JsonObject) -> Finish:
    """How an answer ended. `abort` and `error` (vLLM's) are no end: the call has to be made again."""
    match choice.get("finish_reason"):
        case "length":
            return "max_tokens"
        case "content_filter":
            return "content_filter"
        case "abort" | "error" as reason:
            raise BadCompletion(f"the model server ended the answer with finish_reason {reason!r}")
        case _:
            return "stop"


def usage_of(completion: JsonObject) -> Usage:
    """The server's token counts; details that it leaves out or gives as null count 0."""
    usage = completion.get("usage") or {}
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    reasoning = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens")
    return Usage(usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0, cached or 0, reasoning or 0)


def reasoning_of(message: JsonObject) -> str:
    """The reasoning that the server split off: `reasoning`, or `reasoning_content` from older servers."""
    return _text(message.get("reasoning")) or _text(message.get("reasoning_content"))


def text_of(message: JsonObject) -> str:
    """The visible text."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(_text(part.get("text")) for part in content if isinstance(part, dict))
    return _text(content)


def calls_of(message: JsonObject, *, id_prefix: str) -> list[Call]:
    """The tool calls in order; one that the server gave no id gets one from the prefix and its place."""
    calls = []
    for number, call in enumerate(message.get("tool_calls") or ()):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadCompletion(f"tool call {number} of the model server has no function")
        call_id = call.get("id") or f"call_{id_prefix}_{number}"
        calls.append(Call(call_id, function["name"], _arguments(function.get("arguments"))))
    return calls


def _arguments(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False)


def _text(value: object) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    raise BadCompletion(f"the model server's message has {type(value).__name__} where a text belongs")
