"""A Responses API request as a Chat Completions request.

Source: OpenAI's `ResponseCreateParams`; vLLM's `ChatCompletionRequest` for the other side.
"""

from __future__ import annotations

from gym.jsontypes import JsonObject
from gym.wire.checks import as_bool, as_list, as_object, as_text, only, words
from gym.wire.errors import WireError
from gym.wire.responses.items import to_chat_messages
from gym.wire.server_fields import add_extras, passed_fields
from gym.wire.tools import add_tools, function_tools, response_format

__all__ = ["LOGPROBS", "NO_EFFECT", "refuse_stored", "to_chat_messages", "to_chat_request", "wants_logprobs"]

LOGPROBS = "message.output_text.logprobs"

# Accepted and ignored. `max_tool_calls` bounds hosted tools, which do not exist here; `include` has nothing to add but
# log-probabilities; `reasoning.summary` is answered by the whole reasoning; the rest speaks to OpenAI's billing,
# caching and policing. `metadata` is echoed by the reply.
NO_EFFECT = words("""
    service_tier prompt_cache_key prompt_cache_retention prompt_cache_options safety_identifier max_tool_calls
    stream_options metadata access_programs
""")
_HANDLED = NO_EFFECT | words("""
    model input instructions tools tool_choice parallel_tool_calls text reasoning max_output_tokens top_logprobs
    include stream store truncation background previous_response_id conversation prompt context_management
""")
_REFUSED = {
    "previous_response_id": "no responses are stored: send the whole conversation as `input`",
    "conversation": "no conversations are stored: send the whole conversation as `input`",
    "prompt": "no prompt templates are stored: send the prompt itself",
    "context_management": "the conversation is sent to the model as it is, it is never compacted",
}
_INCLUDABLE_PREFIXES = ("file_search_call.", "web_search_call.", "computer_call_output.", "code_interpreter_call.")


def to_chat_request(body: JsonObject) -> JsonObject:
    """Translate the body of `POST /v1/responses`. Raises WireError.

    `max_output_tokens` becomes `max_tokens`: every server that speaks Chat Completions knows it, and vLLM lets a
    `max_completion_tokens` that came through `extra_body` win over it.
    """
    refuse_stored(as_object(body, ""))
    request: JsonObject = {}
    if body.get("model") is not None:
        request["model"] = as_text(body["model"], "model")
    request["messages"] = _messages(body)
    request |= passed_fields(body, _HANDLED)
    if body.get("max_output_tokens") is not None:
        request["max_tokens"] = body["max_output_tokens"]
    tools = function_tools(body["tools"]) if body.get("tools") is not None else []
    add_tools(request, tools, body.get("tool_choice"), body.get("parallel_tool_calls"))
    _add_text(request, body.get("text"))
    _add_reasoning(request, body.get("reasoning"))
    _add_logprobs(request, body)
    if body.get("stream") is not None and as_bool(body["stream"], "stream"):
        request["stream"] = True
        request["stream_options"] = {"include_usage": True}  # the last event carries the usage
    add_extras(request, body)
    return request


def refuse_stored(body: JsonObject) -> None:
    """Refuse what needs a store, or would make the prompt another one than was sent. Raises WireError."""
    for field, message in _REFUSED.items():
        if body.get(field) is not None:
            raise WireError(field, message)
    if body.get("background"):
        raise WireError("background", "the answer is given on this call; submit a batch for work in the background")
    if body.get("store"):
        raise WireError("store", "responses cannot be fetched later under their id: leave it out or say false")
    if body.get("truncation") not in (None, "disabled"):
        raise WireError("truncation", "the conversation is never cut; only 'disabled' is possible")
    options = as_object(body.get("stream_options") or {}, "stream_options")
    only(options, ("include_obfuscation",), "stream_options")


def _messages(body: JsonObject) -> list[JsonObject]:
    """The input with `instructions` before it, folded into a leading system or developer message.

    Many chat templates take one system message only, and only in front.
    """
    items = body.get("input")
    if items is None:
        raise WireError("input", "is missing: a text or a list of items")
    messages = to_chat_messages(items)
    if body.get("instructions") is not None:
        instructions = as_text(body["instructions"], "instructions")
        if messages and messages[0]["role"] in ("system", "developer"):
            messages[0] = {"role": "system", "content": _fold(instructions, messages[0]["content"])}
        else:
            messages.insert(0, {"role": "system", "content": instructions})
    if not messages:
        raise WireError("input", "is empty")
    return messages


def _fold(instructions: str, said: str | list[JsonObject]) -> str | list[JsonObject]:
    if isinstance(said, str):
        return f"{instructions}\n\n{said}"
    if all(part["type"] == "text" for part in said):
        return "\n".join([f"{instructions}\n", *(part["text"] for part in said)])
    return [{"type": "text", "text": instructions}, *said]


def _add_text(request: JsonObject, value: object) -> None:
    if value is None:
        return
    text = as_object(value, "text")
    only(text, ("format", "verbosity"), "text")
    if text.get("verbosity") not in (None, "medium"):
        raise WireError("text.verbosity", "the model server cannot be told; only 'medium' is possible")
    if text.get("format") is not None and (form := response_format(text["format"], "text.format")) is not None:
        request["response_format"] = form


def _add_reasoning(request: JsonObject, value: object) -> None:
    if value is None:
        return
    reasoning = as_object(value, "reasoning")
    only(reasoning, ("effort", "summary", "generate_summary"), "reasoning")
    if reasoning.get("effort") is not None:
        request["reasoning_effort"] = as_text(reasoning["effort"], "reasoning.effort")


def _add_logprobs(request: JsonObject, body: JsonObject) -> None:
    wanted = as_list(body.get("include") or [], "include")
    for number, name in enumerate(wanted):
        known = name in (LOGPROBS, "reasoning.encrypted_content", "message.input_image.image_url")
        if not known and not as_text(name, f"include.{number}").startswith(_INCLUDABLE_PREFIXES):
            raise WireError(f"include.{number}", f"{name!r} cannot be included")
    if body.get("top_logprobs"):
        request["logprobs"] = True
        request["top_logprobs"] = body["top_logprobs"]
    elif LOGPROBS in wanted:
        request["logprobs"] = True


def wants_logprobs(body: JsonObject) -> bool:
    """Return whether the reply has to contain the log-probabilities of its text."""
    return bool(body.get("top_logprobs")) or LOGPROBS in (body.get("include") or ())
