"""Checks of Chat Completions requests, without fields unknown to the model server; and the answer as the caller asked.

The farm asks the server for more than the caller did (token ids, log-probabilities, usage of a stream, ids in place of
tokens' texts); the caller sees what it asked for.
"""

from __future__ import annotations

from gym.jsontypes import JsonObject
from gym.wire.chat.completion import ID_MARK, choice_of, logprobs_of, readable
from gym.wire.chat.messages import checked_messages
from gym.wire.checks import as_bool, as_object, as_text, only, present, words
from gym.wire.errors import WireError
from gym.wire.server_fields import add_extras, passed_fields
from gym.wire.tools import add_tools, function_tools

# Accepted and ignored: OpenAI's billing, caching, policing; `prediction` only makes its servers faster.
NO_EFFECT = words("service_tier prompt_cache_key prompt_cache_retention safety_identifier metadata prediction")
_CHECKED = words("max_tokens max_completion_tokens logprobs top_logprobs response_format reasoning_effort")
_HANDLED = (
    NO_EFFECT
    | _CHECKED
    | words("""
    model messages n tools tool_choice parallel_tool_calls stream stream_options store modalities verbosity
    functions function_call audio web_search_options previous_response_id background
""")
)
_REFUSED = {
    "functions": "is the form before `tools`: offer the functions as tools",
    "function_call": "is the form before `tool_choice`",
    "audio": "the model server writes text only",
    "web_search_options": "the model server does not search",
    "previous_response_id": "no answers are stored: send the whole conversation",
}


def to_chat_request(body: JsonObject) -> JsonObject:
    """Check the body of `POST /v1/chat/completions`. Raises WireError."""
    _refuse(as_object(body, ""))
    request: JsonObject = {}
    if body.get("model") is not None:
        request["model"] = as_text(body["model"], "model")
    request["messages"] = checked_messages(body.get("messages"))
    request |= passed_fields(body, _HANDLED)
    request |= {name: body[name] for name in sorted(_CHECKED) if body.get(name) is not None}
    tools = function_tools(body["tools"]) if body.get("tools") is not None else []
    add_tools(request, tools, body.get("tool_choice"), body.get("parallel_tool_calls"))
    if body.get("stream") is not None and as_bool(body["stream"], "stream"):
        request["stream"] = True
        options = present(as_object(body.get("stream_options") or {}, "stream_options"))
        only(options, ("include_usage", "continuous_usage_stats", "include_obfuscation"), "stream_options")
        options.pop("include_obfuscation", None)
        request["stream_options"] = {**options, "include_usage": True}
    add_extras(request, body)
    return request


def _refuse(body: JsonObject) -> None:
    for field, message in _REFUSED.items():
        if body.get(field) is not None:
            raise WireError(field, message)
    if body.get("n") not in (None, 1) or body.get("n") is True:
        raise WireError("n", "one answer for each call: send the call again for another")
    if body.get("store"):
        raise WireError("store", "completions cannot be fetched later: leave it out or say false")
    if body.get("background"):
        raise WireError("background", "the answer is given on this call; submit a batch for work in the background")
    if body.get("modalities") not in (None, ["text"]):
        raise WireError("modalities", "the model server writes text only")
    if body.get("verbosity") not in (None, "medium"):
        raise WireError("verbosity", "the model server cannot be told; only 'medium' is possible")


def to_completion(body: JsonObject, completion: JsonObject) -> JsonObject:
    """Return the completion as the caller asked for it, without the farm's additions. Raises BadCompletion."""
    return {**without_capture(body, completion), "choices": [shown_choice(body, choice_of(completion))]}


def shown_choice(body: JsonObject, choice: JsonObject) -> JsonObject:
    """A choice, whole or a chunk's, as the caller asked for it."""
    shown = without_capture(body, choice)
    if body.get("logprobs") and not body.get("return_tokens_as_token_ids"):
        entries = logprobs_of(shown)
        if entries and str(entries[0].get("token")).startswith(ID_MARK):
            shown["logprobs"] = {**shown["logprobs"], "content": [readable(entry) for entry in entries]}
    return shown


def without_capture(body: JsonObject, value: JsonObject) -> JsonObject:
    """A completion, chunk or choice without the token ids and log-probabilities that the caller did not ask for."""
    hidden = set()
    if not body.get("return_token_ids"):
        hidden |= {"prompt_token_ids", "token_ids"}
    if not body.get("logprobs"):
        hidden.add("logprobs")
    return {name: inner for name, inner in value.items() if name not in hidden}
