"""An Anthropic Messages request as a Chat Completions request.

Source: Anthropic's `MessageCreateParams`, and vLLM's own translation where the two formats have no common word.
"""

from __future__ import annotations

from gym.jsontypes import JsonObject
from gym.wire.checks import as_bool, as_list, as_name, as_object, as_text, only, words
from gym.wire.errors import WireError
from gym.wire.history import arguments_of, in_order
from gym.wire.server_fields import add_extras, passed_fields
from gym.wire.tools import add_tools, response_format

# Accepted and ignored: Anthropic's billing, caching and placement. `metadata` but its `user_id` likewise.
NO_EFFECT = words("cache_control service_tier inference_geo speed diagnostics user_profile_id workspace_id")
_HANDLED = NO_EFFECT | words("""
    model messages system max_tokens stop_sequences tools tool_choice thinking output_config output_format
    metadata stream container mcp_servers context_management previous_response_id background
""")
_REFUSED = {
    "container": "the model server has no containers",
    "mcp_servers": "the model server calls no MCP servers; offer their tools as tools",
    "previous_response_id": "no answers are stored: send the whole conversation",
    "background": "the answer is given on this call; submit a batch for work in the background",
}
_BLOCK = frozenset({"type", "cache_control"})
# Claude Code puts a line for Anthropic's billing first, with a hash that differs from call to call. It is no part of
# the prompt, and would break the common prefix of a rollout's turns.
_BILLING = "x-anthropic-billing-header"


def to_chat_request(body: JsonObject) -> JsonObject:
    """Translate the body of `POST /v1/messages`. Raises WireError."""
    for field, message in _REFUSED.items():
        if as_object(body, "").get(field) not in (None, False, []):
            raise WireError(field, message)
    _check_edits(body.get("context_management"))
    request: JsonObject = {}
    if body.get("model") is not None:
        request["model"] = as_text(body["model"], "model")
    request["messages"] = _messages(body)
    if request["messages"][-1]["role"] == "assistant":
        request |= _prefilled(request["messages"][-1])
    request |= passed_fields(body, _HANDLED)
    if body.get("max_tokens") is not None:
        request["max_tokens"] = body["max_tokens"]
    if body.get("stop_sequences") is not None:
        request["stop"] = as_list(body["stop_sequences"], "stop_sequences")
    _add_tools(request, body)
    _add_output(request, body)
    _add_thinking(request, body.get("thinking"))
    metadata = as_object(body.get("metadata") or {}, "metadata")
    if metadata.get("user_id") is not None:
        request["user"] = as_text(metadata["user_id"], "metadata.user_id")
    if body.get("stream") is not None and as_bool(body["stream"], "stream"):
        request["stream"] = True
        request["stream_options"] = {"include_usage": True}
    add_extras(request, body)
    return request


def _check_edits(value: object) -> None:
    """Accept context management that clears nothing; Claude Code sends such an edit with every request."""
    if value is None:
        return
    given = as_object(value, "context_management")
    only(given, ("edits",), "context_management")
    for number, each in enumerate(as_list(given.get("edits") or [], "context_management.edits")):
        field = f"context_management.edits.{number}"
        edit = as_object(each, field)
        kind = as_text(edit.get("type"), f"{field}.type")
        if not (kind.startswith("clear_thinking_") and edit.get("keep") in ("all", {"type": "all"})):
            raise WireError(field, "the conversation is sent to the model as it is, so nothing in it can be cleared")


def _prefilled(last: JsonObject) -> JsonObject:
    """Return the fields that make a server continue the assistant's last message instead of beginning another one.

    Source: vLLM's `ChatCompletionRequest.continue_final_message`. Servers without it refuse the field.
    """
    if last.get("tool_calls"):
        raise WireError("messages", "end with a tool use that has no result: nothing can be generated after it")
    return {"continue_final_message": True, "add_generation_prompt": False}


def _messages(body: JsonObject) -> list[JsonObject]:
    messages = []
    if body.get("system") is not None and (system := _system(body["system"], "system")):
        messages.append({"role": "system", "content": system})
    for number, value in enumerate(as_list(body.get("messages"), "messages")):
        field = f"messages.{number}"
        message = as_object(value, field)
        only(message, ("role", "content"), field)
        said = message.get("content")
        match message.get("role"):
            case "user":
                messages += _user(said, f"{field}.content")
            case "assistant":
                messages.append(_assistant(said, f"{field}.content"))
            case "system":
                messages.append({"role": "system", "content": _system(said, f"{field}.content")})
            case other:
                raise WireError(f"{field}.role", f"{other!r} is not one of user, assistant, system")
    if not messages:
        raise WireError("messages", "is empty")
    return in_order(messages)


def _system(value: object, field: str) -> str:
    """The system prompt: its blocks as paragraphs."""
    if isinstance(value, str):
        return value
    texts = []
    for number, given in enumerate(as_list(value, field)):
        block = as_object(given, f"{field}.{number}")
        if block.get("type") != "text":
            raise WireError(f"{field}.{number}.type", "a system prompt is made of text blocks")
        text = _block_text(block, f"{field}.{number}")
        if not text.startswith(_BILLING):
            texts.append(text)
    return "\n\n".join(texts)


def _user(value: object, field: str) -> list[JsonObject]:
    """A user message; each tool result in it becomes a message of its own, in order."""
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    messages: list[JsonObject] = []
    parts: list[JsonObject] = []
    for number, given in enumerate(as_list(value, field)):
        where = f"{field}.{number}"
        block = as_object(given, where)
        if block.get("type") == "tool_result":
            if parts:
                messages.append({"role": "user", "content": _content(parts)})
                parts = []
            messages.append(_tool_result(block, where))
        else:
            parts.append(_part(block, where))
    if parts or not messages:
        messages.append({"role": "user", "content": _content(parts)})
    return messages


def _tool_result(block: JsonObject, field: str) -> JsonObject:
    """A tool's answer. Chat Completions has no word for a failed one, so the text says it."""
    only(block, _BLOCK | {"tool_use_id", "content", "is_error"}, field)
    message: JsonObject = {"role": "tool", "tool_call_id": as_name(block.get("tool_use_id"), f"{field}.tool_use_id")}
    said = block.get("content")
    parts = []
    if isinstance(said, str):
        parts = [{"type": "text", "text": said}]
    elif said is not None:
        for number, part in enumerate(as_list(said, f"{field}.content")):
            parts.append(_part(as_object(part, f"{field}.content.{number}"), f"{field}.content.{number}"))
    if block.get("is_error") is not None and as_bool(block["is_error"], f"{field}.is_error"):
        if parts and parts[0]["type"] == "text":
            parts[0] = {"type": "text", "text": f"Error: {parts[0]['text']}"}
        else:
            parts.insert(0, {"type": "text", "text": "Error"})
    message["content"] = _content(parts)
    return message


def _content(parts: list[JsonObject]) -> str | list[JsonObject]:
    if not parts:
        return ""
    if len(parts) == 1 and parts[0]["type"] == "text":
        text: str = parts[0]["text"]
        return text
    return parts


def _part(block: JsonObject, field: str) -> JsonObject:
    match block.get("type"):
        case "text":
            return {"type": "text", "text": _block_text(block, field)}
        case "image":
            only(block, _BLOCK | {"source"}, field)
            return {"type": "image_url", "image_url": {"url": _image_url(block.get("source"), f"{field}.source")}}
        case other:
            raise WireError(f"{field}.type", f"blocks of type {other!r} cannot be translated to Chat Completions")


def _image_url(value: object, field: str) -> str:
    source = as_object(value, field)
    match source.get("type"):
        case "url":
            return as_name(source.get("url"), f"{field}.url")
        case "base64":
            media_type = as_name(source.get("media_type"), f"{field}.media_type")
            return f"data:{media_type};base64,{as_name(source.get('data'), f'{field}.data')}"
        case other:
            raise WireError(f"{field}.type", f"{other!r} is not one of base64, url; there is no file store")


def _block_text(block: JsonObject, field: str) -> str:
    only(block, _BLOCK | {"text", "citations"}, field)
    return as_text(block.get("text"), f"{field}.text")


def _assistant(value: object, field: str) -> JsonObject:
    """An assistant message: its texts as one, thinking as reasoning, tool uses as tool calls."""
    if isinstance(value, str):
        return {"role": "assistant", "content": value}
    texts: list[str] = []
    thinking: list[str] = []
    calls: list[JsonObject] = []
    for number, given in enumerate(as_list(value, field)):
        where = f"{field}.{number}"
        block = as_object(given, where)
        match block.get("type"):
            case "text":
                texts.append(_block_text(block, where))
            case "thinking":
                only(block, _BLOCK | {"thinking", "signature"}, where)
                thinking.append(as_text(block.get("thinking"), f"{where}.thinking"))
            case "redacted_thinking":
                raise WireError(f"{where}.type", "only its maker can read redacted thinking; leave the block out")
            case "tool_use":
                calls.append(_tool_use(block, where))
            case other:
                raise WireError(f"{where}.type", f"blocks of type {other!r} cannot be translated to Chat Completions")
    message: JsonObject = {"role": "assistant"}
    if reasoning := "\n\n".join(thinking):
        message["reasoning"] = message["reasoning_content"] = reasoning
    message["content"] = "".join(texts) if texts or not calls else None
    if calls:
        message["tool_calls"] = calls
    return message


def _tool_use(block: JsonObject, field: str) -> JsonObject:
    only(block, _BLOCK | {"id", "name", "input", "caller"}, field)
    if (caller := block.get("caller")) is not None and as_object(caller, f"{field}.caller").get("type") != "direct":
        raise WireError(f"{field}.caller", "calls made by programs cannot be translated to Chat Completions")
    given = as_object(block.get("input"), f"{field}.input")
    return {
        "id": as_name(block.get("id"), f"{field}.id"),
        "type": "function",
        "function": {"name": as_name(block.get("name"), f"{field}.name"), "arguments": arguments_of(given)},
    }


def _add_tools(request: JsonObject, body: JsonObject) -> None:
    tools = []
    for number, value in enumerate(as_list(body["tools"], "tools") if body.get("tools") is not None else ()):
        field = f"tools.{number}"
        tool = as_object(value, field)
        if tool.get("type") not in (None, "custom"):
            raise WireError(f"{field}.type", "the model server runs no tools of its own: only custom tools")
        known = (
            "name",
            "description",
            "input_schema",
            "strict",
            "eager_input_streaming",
            "allowed_callers",
            "defer_loading",
        )
        only(tool, _BLOCK.union(known), field)
        if tool.get("allowed_callers") not in (None, ["direct"]):
            raise WireError(f"{field}.allowed_callers", "tools are called by the model alone")
        function: JsonObject = {"name": as_name(tool.get("name"), f"{field}.name")}
        if tool.get("description") is not None:
            function["description"] = as_text(tool["description"], f"{field}.description")
        function["parameters"] = as_object(tool.get("input_schema"), f"{field}.input_schema")
        if tool.get("strict") is not None:
            function["strict"] = as_bool(tool["strict"], f"{field}.strict")
        tools.append({"type": "function", "function": function})
    choice: object = None
    parallel: bool | None = None
    if body.get("tool_choice") is not None:
        given = as_object(body["tool_choice"], "tool_choice")
        only(given, ("type", "name", "disable_parallel_tool_use"), "tool_choice")
        match given.get("type"):
            case "auto" | "none" as same:
                choice = same
            case "any":
                choice = "required"
            case "tool":
                choice = {"type": "function", "name": given.get("name")}
            case other:
                raise WireError("tool_choice.type", f"{other!r} is not one of auto, any, tool, none")
        if given.get("disable_parallel_tool_use") is not None:
            parallel = not as_bool(given["disable_parallel_tool_use"], "tool_choice.disable_parallel_tool_use")
    add_tools(request, tools, choice, parallel)


def _add_output(request: JsonObject, body: JsonObject) -> None:
    config = as_object(body.get("output_config") or {}, "output_config")
    only(config, ("effort", "format"), "output_config")
    if config.get("effort") is not None:
        request["reasoning_effort"] = as_text(config["effort"], "output_config.effort")
    for value, field in ((body.get("output_format"), "output_format"), (config.get("format"), "output_config.format")):
        if value is not None:
            form = {"name": "output", "strict": True, **as_object(value, field)}
            if (translated := response_format(form, field)) is not None:
                request["response_format"] = translated


def _add_thinking(request: JsonObject, value: object) -> None:
    """Thinking on or off is a matter of the chat template. `budget_tokens` and `display` are taken as hints.

    vLLM refuses a `thinking_token_budget` unless it was started for it; to enforce the budget, send that field.
    """
    if value is None:
        return
    thinking = as_object(value, "thinking")
    only(thinking, ("type", "budget_tokens", "display"), "thinking")
    match thinking.get("type"):
        case "enabled":
            request["chat_template_kwargs"] = {"enable_thinking": True}
        case "disabled":
            request["chat_template_kwargs"] = {"enable_thinking": False}
        case "adaptive":
            pass
        case other:
            raise WireError("thinking.type", f"{other!r} is not one of enabled, disabled, adaptive")
