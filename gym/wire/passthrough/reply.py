"""The answer of a server that has the Responses API itself: passed on as it came, and read as a chat completion.

The farm's additions to the caller's request (log-probabilities, the tokens in `input_messages` and `output_messages`)
are removed again. Source: OpenAI's `Response`; vLLM 0.32, `entrypoints/openai/responses/protocol.py`.
"""

from __future__ import annotations

from typing import Any

from gym.jsontypes import JsonObject
from gym.wire.chat.completion import as_list, as_object, as_text
from gym.wire.errors import BadCompletion
from gym.wire.responses.request import LOGPROBS

RESPONSE = "response"  # where a completion that was read from a response has it
ASKED = "enable_response_messages"
FINAL_EVENTS = frozenset({"response.completed", "response.incomplete"})
_MESSAGES = frozenset({"input_messages", "output_messages"})
_FINISH = {"max_output_tokens": "length", "content_filter": "content_filter"}


def to_completion(response: JsonObject) -> JsonObject:
    """The response as a chat completion of one choice, with the response in it. Raises BadCompletion."""
    status = response.get("status")
    if status not in ("completed", "incomplete"):
        raise BadCompletion(f"the model server's response is {status!r}: {_error_text(response.get('error'))}")
    finish = "stop"
    if status == "incomplete":
        reason = as_object(response.get("incomplete_details"), "incomplete_details").get("reason")
        finish = _FINISH.get(as_text(reason, "incomplete_details.reason"), "length")
    message = _message(_items(response))
    if finish == "stop" and message.get("tool_calls"):
        finish = "tool_calls"
    versions: JsonObject = {name: response[name] for name in ("weight_version", "weight_versions") if name in response}
    completion: JsonObject = {
        "id": response.get("id"),
        "object": "chat.completion",
        "created": response.get("created_at"),
        "model": response.get("model"),
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": _usage(response.get("usage")),
        **versions,
        RESPONSE: response,
    }
    return completion


def final_response(event: JsonObject) -> JsonObject | None:
    """The whole response, of the event that has it. Raises BadCompletion for one that says the answer is lost."""
    name = event.get("type")
    if name in FINAL_EVENTS:
        return as_object(event.get("response"), "response")
    if name == "response.failed":
        error = as_object(event.get("response"), "response").get("error")
        raise BadCompletion(f"the model server broke the stream off: {_error_text(error)}")
    if name == "error" or (name is None and event.get("error") is not None):
        raise BadCompletion(f"the model server broke the stream off: {_error_text(event.get('error') or event)}")
    return None


def shown_response(body: JsonObject, response: JsonObject) -> JsonObject:
    """The response as the caller whose request is `body` asked for it."""
    hidden = frozenset() if body.get(ASKED) else _MESSAGES
    shown = {name: value for name, value in response.items() if name not in hidden}
    if not includes_logprobs(body):
        shown["output"] = [_without_logprobs(item) for item in _items(response)]
    return shown


def shown_event(body: JsonObject, event: JsonObject) -> JsonObject:
    """Return an event of a stream as the caller whose request is `body` asked for it."""
    shown = dict(event)
    if isinstance(event.get("response"), dict):
        shown["response"] = shown_response(body, event["response"])
    if includes_logprobs(body):
        return shown
    if event.get("logprobs"):
        shown["logprobs"] = []
    if isinstance(event.get("item"), dict):
        shown["item"] = _without_logprobs(event["item"])
    if isinstance(event.get("part"), dict):
        shown["part"] = _silent(event["part"])
    return shown


def includes_logprobs(body: JsonObject) -> bool:
    """Return whether the caller asked for the log-probabilities of texts."""
    return LOGPROBS in (body.get("include") or ())


def _items(response: JsonObject) -> list[JsonObject]:
    return [as_object(item, "output item") for item in as_list(response.get("output"), "output")]


def _without_logprobs(item: JsonObject) -> JsonObject:
    if not isinstance(item.get("content"), list):
        return item
    return {**item, "content": [_silent(part) for part in item["content"]]}


def _silent(part: Any) -> Any:
    return {**part, "logprobs": []} if isinstance(part, dict) and part.get("logprobs") else part


def _message(items: list[JsonObject]) -> JsonObject:
    texts: list[str] = []
    refusals: list[str] = []
    reasoning: list[str] = []
    calls: list[JsonObject] = []
    for item in items:
        parts = [as_object(part, "content part") for part in as_list(item.get("content"), "content")]
        match item.get("type"):
            case "message":
                texts += [as_text(part.get("text"), "text") for part in parts]
                refusals += [refusal for part in parts if (refusal := as_text(part.get("refusal"), "refusal"))]
            case "reasoning":
                parts = parts or [as_object(part, "summary") for part in as_list(item.get("summary"), "summary")]
                reasoning += [as_text(part.get("text"), "reasoning") for part in parts]
            case "function_call":
                function = {name: as_text(item.get(name), name) for name in ("name", "arguments")}
                calls.append({"id": as_text(item.get("call_id"), "call_id"), "type": "function", "function": function})
    message: JsonObject = {"role": "assistant", "content": "".join(texts)}
    if refusals:
        message["refusal"] = "".join(refusals)
    if any(reasoning):
        message["reasoning"] = "\n\n".join(reasoning)
    if calls:
        message["tool_calls"] = calls
    return message


def _usage(usage: Any) -> JsonObject:
    if not isinstance(usage, dict):
        return {}
    return {
        "prompt_tokens": usage.get("input_tokens"),
        "completion_tokens": usage.get("output_tokens"),
        "prompt_tokens_details": usage.get("input_tokens_details"),
        "completion_tokens_details": usage.get("output_tokens_details"),
    }


def _error_text(error: Any) -> str:
    message = error.get("message") if isinstance(error, dict) else error
    return str(message) if message else "it gives no reason"
