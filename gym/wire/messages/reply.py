"""A chat completion as an Anthropic message.

Source: Anthropic's `Message`.
"""

from __future__ import annotations

from gym.jsontypes import JsonObject
from gym.trajectory import Usage
from gym.wire.chat.completion import calls_of, choice_of, finish_of, reasoning_of, refusals_of, text_of, usage_of
from gym.wire.history import input_of


def to_message(body: JsonObject, completion: JsonObject, *, message_id: str) -> JsonObject:
    """The message that answers the request `body`. Raises BadCompletion.

    Thinking carries the message's id as its signature: clients drop thinking that has none, and nothing checks it here.
    """
    choice = choice_of(completion)
    message = choice["message"]
    blocks: list[JsonObject] = []
    if reasoning := reasoning_of(message):
        blocks.append({"type": "thinking", "thinking": reasoning, "signature": message_id})
    if text := "".join([text_of(message), *refusals_of(message)]):
        blocks.append({"type": "text", "text": text})
    calls = calls_of(message, id_prefix=message_id.removeprefix("msg_"))
    blocks += [
        {"type": "tool_use", "id": call.call_id, "name": call.name, "input": input_of(call.arguments)} for call in calls
    ]
    if not blocks:
        blocks.append({"type": "text", "text": ""})
    refused = bool(refusals_of(message))
    stop_reason, stop_sequence = stop_of(body, choice, has_calls=bool(calls), refused=refused)
    return {
        "id": message_id,
        "type": "message",
        "role": "assistant",
        "model": completion.get("model") or body.get("model") or "",
        "content": blocks,
        "stop_reason": stop_reason,
        "stop_sequence": stop_sequence,
        "usage": usage_object(usage_of(completion)),
    }


def stop_of(body: JsonObject, choice: JsonObject, *, has_calls: bool, refused: bool) -> tuple[str, str | None]:
    """`stop_reason` and `stop_sequence`. vLLM reports in `stop_reason` which stop text ended the answer."""
    match finish_of(choice):
        case "max_tokens":
            return "max_tokens", None
        case "content_filter":
            return "refusal", None
        case "stop":
            pass
    if has_calls:
        return "tool_use", None
    if refused:
        return "refusal", None
    stopped_by = choice.get("stop_reason")
    if isinstance(stopped_by, str) and stopped_by in (body.get("stop_sequences") or ()):
        return "stop_sequence", stopped_by
    return "end_turn", None


def usage_object(usage: Usage) -> JsonObject:
    """Token counts as Anthropic writes them: `input_tokens` are those that were not read from the cache."""
    return {
        "input_tokens": usage.input_tokens - usage.cached_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage.output_tokens,
    }
