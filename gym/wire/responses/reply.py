"""A chat completion as a Responses API response.

Item ids come from the prefix and the item's place, so a reply that is built twice, or streamed, has the same ids.
Source: OpenAI's `Response`.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Literal

from gym.jsontypes import JsonObject
from gym.trajectory import Usage
from gym.wire.chat.completion import (
    WrittenToolCall,
    as_text,
    bytes_of,
    calls_of,
    choice_of,
    finish_of,
    logprobs_of,
    readable,
    reasoning_of,
    refusals_of,
    text_of,
    usage_of,
)
from gym.wire.responses.request import wants_logprobs

__all__ = ["build_response", "finish_of", "output_items", "to_response", "usage_of"]

Status = Literal["in_progress", "completed", "incomplete", "failed"]

INCOMPLETE_REASONS = {"max_tokens": "max_output_tokens", "content_filter": "content_filter"}


def output_items(message: JsonObject, *, id_prefix: str, status: str = "completed") -> list[JsonObject]:
    """The items of an assistant message: reasoning, message, function calls, in that order.

    An answer without text gets a message item only if it has nothing else either. `status` is the last item's; those
    before it were finished.
    """
    items = []
    if reasoning := reasoning_of(message):
        items.append(reasoning_item(id_prefix, 0, [reasoning_part(reasoning)]))
    calls = calls_of(message, id_prefix=id_prefix)
    parts = []
    if text := text_of(message):
        parts.append(text_part(text))
    parts += [refusal_part(refusal) for refusal in refusals_of(message)]
    if parts or not (items or calls):
        items.append(message_item(id_prefix, 0, parts or [text_part("")]))
    items += [call_item(id_prefix, number, call) for number, call in enumerate(calls)]
    items[-1]["status"] = status
    return items


def reasoning_item(id_prefix: str, number: int, parts: list[JsonObject], status: str = "completed") -> JsonObject:
    """A reasoning item; open models give their reasoning itself, so there is no summary."""
    return {"id": _id("rs", id_prefix, number), "type": "reasoning", "summary": [], "content": parts, "status": status}


def message_item(id_prefix: str, number: int, parts: list[JsonObject], status: str = "completed") -> JsonObject:
    """An assistant's message item."""
    return {
        "id": _id("msg", id_prefix, number),
        "type": "message",
        "role": "assistant",
        "content": parts,
        "status": status,
    }


def call_item(id_prefix: str, number: int, call: WrittenToolCall, status: str = "completed") -> JsonObject:
    """A function call item."""
    return {
        "id": _id("fc", id_prefix, number),
        "type": "function_call",
        "call_id": call.call_id,
        "name": call.name,
        "arguments": call.arguments,
        "status": status,
    }


def _id(kind: str, id_prefix: str, number: int) -> str:
    return f"{kind}_{id_prefix}_{number}"


def reasoning_part(text: str) -> JsonObject:
    """A part of a reasoning item."""
    return {"type": "reasoning_text", "text": text}


def text_part(text: str) -> JsonObject:
    """A text part of a message."""
    return {"type": "output_text", "text": text, "annotations": []}


def refusal_part(text: str) -> JsonObject:
    """A refusal part of a message."""
    return {"type": "refusal", "refusal": text}


def to_response(body: JsonObject, completion: JsonObject, *, response_id: str, created_at: float) -> JsonObject:
    """The response to the request `body`. Raises BadCompletion."""
    choice = choice_of(completion)
    reason = INCOMPLETE_REASONS.get(finish_of(choice))
    status: Literal["completed", "incomplete"] = "incomplete" if reason else "completed"
    output = output_items(choice["message"], id_prefix=id_prefix_of(response_id), status=status)
    if wants_logprobs(body):
        add_logprobs(output, logprobs_of(choice) or [])
    return build_response(
        response_id=response_id,
        created_at=created_at,
        model=completion.get("model") or body.get("model") or "",
        output=output,
        usage=usage_of(completion),
        request=body,
        status=status,
        incomplete_reason=reason,
    )


def id_prefix_of(response_id: str) -> str:
    """Return the prefix of the ids of a response's items."""
    return response_id.removeprefix("resp_")


def build_response(
    *,
    response_id: str,
    created_at: float,
    model: str,
    output: list[JsonObject],
    usage: Usage | None,
    request: JsonObject,
    status: Status,
    incomplete_reason: str | None = None,
    error: JsonObject | None = None,
) -> JsonObject:
    """A whole response object around items that are there already; the request's settings are echoed."""
    return {
        "id": response_id,
        "object": "response",
        "created_at": created_at,
        "status": status,
        "error": error,
        "incomplete_details": {"reason": incomplete_reason} if incomplete_reason else None,
        "model": model,
        "output": output,
        "usage": None if usage is None else usage_object(usage),
        **_echo(request),
    }


def _echo(request: JsonObject) -> JsonObject:
    """The settings that a response repeats, or their defaults."""
    defaults: JsonObject = {
        "background": False,
        "instructions": None,
        "max_output_tokens": None,
        "max_tool_calls": None,
        "metadata": {},
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "prompt_cache_key": None,
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": None,
        "service_tier": None,
        "store": False,
        "temperature": None,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": None,
        "top_p": None,
        "truncation": "disabled",
        "user": None,
    }
    return {name: request[name] if request.get(name) is not None else value for name, value in defaults.items()}


def usage_object(usage: Usage) -> JsonObject:
    """Token counts as the Responses API writes them."""
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }


def add_logprobs(output: list[JsonObject], entries: list[JsonObject]) -> None:
    """Put log-probabilities on the text parts they belong to.

    The server's list covers all tokens in order, reasoning and tool calls too. Where a text's tokens cannot be told
    from the others at token boundaries, its part gets an empty list rather than a wrong one.
    """
    pieces = [bytes_of(entry) for entry in entries]
    whole = b"".join(pieces)
    borders = list(accumulate(map(len, pieces), initial=0))
    starts = {border: number for number, border in enumerate(borders)}
    ends = {border: number for number, border in reversed(list(enumerate(borders)))}  # tokens without bytes stay out
    position = 0
    for item in output:
        for part in item.get("content", ()):
            said = part.get("text", "").encode("utf-8", "surrogatepass")
            at = whole.find(said, position)
            if part["type"] == "output_text":
                while at >= 0 and not (at in starts and at + len(said) in ends):
                    at = whole.find(said, at + 1)
                run = entries[starts[at] : ends[at + len(said)]] if at >= 0 and said else []
                part["logprobs"] = logprobs(run)
            if at >= 0:
                position = at + len(said)


def logprobs(entries: list[JsonObject]) -> list[JsonObject]:
    """Log-probabilities as the Responses API writes them."""
    return [_logprob(entry) for entry in entries]


def _logprob(entry: JsonObject) -> JsonObject:
    entry = readable(entry)
    return {**_token(entry), "top_logprobs": [_token(top) for top in entry.get("top_logprobs") or ()]}


def _token(entry: JsonObject) -> JsonObject:
    return {
        "token": as_text(entry.get("token"), "token"),
        "bytes": list(bytes_of(entry)),
        "logprob": entry.get("logprob"),
    }
