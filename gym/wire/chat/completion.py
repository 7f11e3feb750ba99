"""Readers of a chat completion: its one choice, finish reason, content and usage.

They raise BadCompletion if the server's answer breaks the Chat Completions format.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from gym.jsontypes import JsonObject
from gym.trajectory import Usage
from gym.wire.errors import BadCompletion

Finish = Literal["stop", "max_tokens", "content_filter"]

MOST_TOKENS = 2**40  # of one answer; a larger number is not a count
NO_ARGUMENTS = "{}"
ID_MARK = "token_id:"  # vLLM's prefix of an id in place of a token's text


@dataclass(frozen=True, slots=True)
class WrittenToolCall:
    """A tool call as the model wrote it; `arguments` is its text, maybe invalid JSON, or `{}` if it is absent."""

    call_id: str
    name: str
    arguments: str


def as_object(value: object, what: str) -> JsonObject:
    """Return an object of the server, empty if it is null or absent."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadCompletion(f"the model server's {what} is no object but {type(value).__name__}")
    return value


def as_list(value: object, what: str) -> list[Any]:
    """Return a list of the server, empty if it is null or absent."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise BadCompletion(f"the model server's {what} is no list but {type(value).__name__}")
    return value


def as_text(value: object, what: str) -> str:
    """Return a text of the server, empty if it is null or absent."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadCompletion(f"the model server's {what} is no text but {type(value).__name__}")
    return value


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
    """Return an answer's finish reason. `abort` and `error` (vLLM's) are no end: the call has to be repeated."""
    match choice.get("finish_reason"):
        case "length":
            return "max_tokens"
        case "content_filter":
            return "content_filter"
        case "abort" | "error" as reason:
            raise BadCompletion(f"the model server ended the answer with finish_reason {reason!r}")
        case _:
            return "stop"


def told_of_cut(completion: JsonObject, limit: int | None) -> JsonObject:
    """Return a whole answer, its finish reason corrected if a token limit cut its tool calls.

    vLLM 0.32 finishes an answer with `tool_calls` whenever it could read a call, even one whose end is missing;
    streamed, the same answer finishes with `length`. One that used up its limit is taken for cut: an end mark that
    happens to be the last token allowed looks the same.
    """
    choice = choice_of(completion)
    if limit is None or choice.get("finish_reason") != "tool_calls" or usage_of(completion).output_tokens < limit:
        return completion
    return {**completion, "choices": [{**choice, "finish_reason": "length"}]}


def usage_of(completion: JsonObject) -> Usage:
    """Return the server's token counts. An absent or invalid count is 0: an answer is not lost over its usage."""
    usage = completion.get("usage")
    return Usage(
        _count(usage, "prompt_tokens"),
        _count(usage, "completion_tokens"),
        min(_count(_part(usage, "prompt_tokens_details"), "cached_tokens"), _count(usage, "prompt_tokens")),
        _count(_part(usage, "completion_tokens_details"), "reasoning_tokens"),
    )


def _part(usage: object, name: str) -> object:
    return usage.get(name) if isinstance(usage, dict) else None


def _count(usage: object, name: str) -> int:
    count = _part(usage, name)
    known = isinstance(count, int) and not isinstance(count, bool) and 0 <= count <= MOST_TOKENS
    return count if known else 0  # type: ignore[return-value]  # an int where it is known


def reasoning_of(message: JsonObject) -> str:
    """The reasoning that the server split off: `reasoning`, or `reasoning_content` from older servers."""
    return as_text(message.get("reasoning"), "reasoning") or as_text(message.get("reasoning_content"), "reasoning")


def text_of(message: JsonObject) -> str:
    """The visible text."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(as_text(as_object(part, "content part").get("text"), "content part") for part in content)
    return as_text(content, "content")


def refusals_of(message: JsonObject) -> list[str]:
    """Refusals, as a field of the message or as parts of its content."""
    found = [as_text(message.get("refusal"), "refusal")]
    if isinstance(content := message.get("content"), list):
        found += [as_text(as_object(part, "content part").get("refusal"), "refusal") for part in content]
    return [refusal for refusal in found if refusal]


def logprobs_of(choice: JsonObject) -> list[JsonObject] | None:
    """Log-probabilities of the generated tokens, `None` where the server gave none."""
    entries = as_object(choice.get("logprobs"), "logprobs").get("content")
    if entries is None:
        return None
    return [as_object(entry, "logprobs entry") for entry in as_list(entries, "logprobs")]


def readable(entry: JsonObject) -> JsonObject:
    """A log-probability with the texts of its tokens, where the farm had asked for `token_id:N` in their place.

    A token's bytes are those of its text; of alternatives vLLM gives the bytes of `token_id:N`, so the text of one that
    is not the token itself is unknown: it keeps its id, without bytes.
    """
    named = entry.get("token")
    shown = _readable(entry)
    if not entry.get("top_logprobs"):
        return shown
    same = {"token": shown.get("token"), "bytes": shown.get("bytes")}
    tops = [as_object(top, "top_logprobs") for top in as_list(entry["top_logprobs"], "top_logprobs")]
    return {
        **shown,
        "top_logprobs": [{**top, **same} if top.get("token") == named else _readable(top) for top in tops],
    }


def _readable(entry: JsonObject) -> JsonObject:
    token = as_text(entry.get("token"), "token")
    if not token.startswith(ID_MARK):
        return entry
    data = bytes_of(entry)
    if data == token.encode():
        return {**entry, "bytes": None}
    return {**entry, "token": data.decode("utf-8", "replace")}


def bytes_of(entry: JsonObject) -> bytes:
    """The bytes of a token, or of its text where the server gives none."""
    if entry.get("bytes") is None:
        return as_text(entry.get("token"), "token").encode("utf-8", "surrogatepass")
    try:
        return bytes(as_list(entry["bytes"], "token's bytes"))
    except (TypeError, ValueError) as error:
        raise BadCompletion(f"the model server's token has bytes that are none: {error}") from error


def calls_of(message: JsonObject, *, id_prefix: str) -> list[WrittenToolCall]:
    """The tool calls in order; one that the server gave no id gets one from the prefix and its place."""
    calls = []
    for number, value in enumerate(as_list(message.get("tool_calls"), "tool_calls")):
        call = as_object(value, "tool call")
        function = as_object(call.get("function"), "tool call")
        if not isinstance(function.get("name"), str):
            raise BadCompletion(f"tool call {number} of the model server names no function")
        call_id = as_text(call.get("id"), "tool call's id") or f"call_{id_prefix}_{number}"
        arguments = arguments_text(function.get("arguments"))
        calls.append(WrittenToolCall(call_id, function["name"], arguments if arguments.strip() else NO_ARGUMENTS))
    return calls


def arguments_text(value: Any) -> str:
    """The arguments of a server's call as text; some servers send the object itself."""
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False)
