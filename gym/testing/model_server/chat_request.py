"""Parsing of chat requests by the scripted server, with vLLM's refusals and their texts.

Source: vLLM 0.32, `entrypoints/openai/chat_completion/protocol.py`. Unknown fields are ignored, as in vLLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from gym.jsontypes import JsonObject

MAX_LOGPROBS = 20
ToolChoice = Literal["none", "auto", "required", "named"]


class Refused(Exception):
    """A request that gets an error response, {"error": {message, type, param, code}}."""

    def __init__(self, status: int, message: str, *, kind: str = "BadRequestError", param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body: JsonObject = {"error": {"message": message, "type": kind, "param": param, "code": status}}


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """The relevant parts of a chat request. `shape` is {"schema": …} or {"choice": […]} that content must fit."""

    model: str | None
    messages: list[JsonObject]
    tools: list[JsonObject] | None
    tool_choice: ToolChoice
    named_tool: str | None
    parallel: bool
    max_tokens: int | None
    stop: tuple[str, ...]
    seed: int | None
    shape: dict[str, Any] | None
    stream: bool
    include_usage: bool
    continuous_usage: bool
    logprobs: bool
    top_logprobs: int
    tokens_as_ids: bool
    return_token_ids: bool


def read_json(raw: bytes) -> JsonObject:
    """Read the body as an object. Raises Refused."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise Refused(400, f"JSON decode error: {error}", kind="Bad Request") from None
    if not isinstance(body, dict):
        raise Refused(400, "Input should be a valid dictionary", kind="Bad Request")
    return body


def read_chat_request(body: JsonObject) -> ChatRequest:
    """Check a chat request. Raises Refused."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise Refused(400, "body.messages: Input should be a valid list of messages", kind="Bad Request")
    if not messages:
        raise Refused(400, "messages must not be empty", param="messages")
    for place, message in enumerate(messages):
        _check_message(message, f"body.messages.{place}")
    if (body.get("n") or 1) != 1:
        raise Refused(400, "n: this scripted server gives one choice per request", param="n")
    tools = body.get("tools")
    choice, named = _tool_choice(body, tools)
    stream = bool(body.get("stream"))
    stream_options = body.get("stream_options") or {}
    if stream_options and not stream:
        raise _invalid("Stream options can only be defined when `stream=True`.", "stream_options")
    logprobs, top = read_logprobs(body)
    max_completion = body.get("max_completion_tokens")
    return ChatRequest(
        model=body.get("model"),
        messages=messages,
        tools=tools,
        tool_choice=choice,
        named_tool=named,
        parallel=body.get("parallel_tool_calls") is not False,
        max_tokens=read_max_tokens(body.get("max_tokens") if max_completion is None else max_completion),
        stop=read_stop(body.get("stop")),
        seed=_read_seed(body.get("seed")),
        shape=_shape(body),
        stream=stream,
        include_usage=bool(stream_options.get("include_usage")),
        continuous_usage=bool(stream_options.get("include_usage") and stream_options.get("continuous_usage_stats")),
        logprobs=logprobs,
        top_logprobs=top,
        tokens_as_ids=bool(body.get("return_tokens_as_token_ids")),
        return_token_ids=bool(body.get("return_token_ids")),
    )


def read_max_tokens(value: Any) -> int | None:
    """Read a token limit. Raises Refused."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise Refused(400, "max_tokens: Input should be a valid integer", kind="Bad Request")
    if value < 1:
        raise _invalid(f"max_tokens must be at least 1, got {value}.", "max_tokens", value)
    return value


def read_stop(value: Any) -> tuple[str, ...]:
    """Read stop texts, one or a list. Raises Refused."""
    if not value:
        return ()
    words = [value] if isinstance(value, str) else value
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise Refused(400, "body.stop: Input should be a valid string or list of strings", kind="Bad Request")
    return tuple(words)


def _read_seed(value: Any) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise Refused(400, "body.seed: Input should be a valid integer", kind="Bad Request")
    return value


def _check_message(message: JsonObject, field: str) -> None:
    """Check the fields of a message that later code relies on. Raises Refused."""
    content, calls = message.get("content"), message.get("tool_calls")
    parts = content if isinstance(content, list) else []
    readable = content is None or isinstance(content, str | list)
    if not readable or not all(isinstance(part, dict) and isinstance(part.get("text", ""), str) for part in parts):
        raise Refused(400, f"{field}.content: Input should be a valid string or list of parts", kind="Bad Request")
    if calls is None:
        return
    if not isinstance(calls, list) or not all(_is_call(call) for call in calls):
        raise Refused(400, f"{field}.tool_calls: Input should be a valid list of calls", kind="Bad Request")


def _is_call(value: Any) -> bool:
    function = value.get("function") if isinstance(value, dict) else None
    return isinstance(function, dict) and all(isinstance(function.get(name), str) for name in ("name", "arguments"))


def read_logprobs(body: JsonObject) -> tuple[bool, int]:
    """Read whether log-probabilities are wanted, and how many alternatives. Raises Refused."""
    wanted = bool(body.get("logprobs"))
    top = body.get("top_logprobs") or 0
    if not isinstance(top, int):
        raise _invalid("`top_logprobs` must be an integer.", "top_logprobs", top)
    if top < 0:
        raise _invalid("`top_logprobs` must be a positive value or -1.", "top_logprobs", top)
    if top and not wanted:
        raise _invalid("when using `top_logprobs`, `logprobs` must be set to true.", "top_logprobs")
    if top > MAX_LOGPROBS:
        raise _invalid(
            f"Requested sample logprobs of {top}, which is greater than max allowed: {MAX_LOGPROBS}", "logprobs", top
        )
    return wanted, top


def _invalid(message: str, parameter: str, value: Any = None) -> Refused:
    # vLLM's validation errors repeat the parameter in their text
    extra = f"parameter={parameter}" + ("" if value is None else f", value={value}")
    return Refused(400, f"{message} ({extra})", param=parameter)


def _tool_choice(body: JsonObject, tools: Any) -> tuple[ToolChoice, str | None]:
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise Refused(400, "body.tools: Input should be a valid list", kind="Bad Request")
    if tools == []:
        raise _invalid(
            "`tools` must not be an empty array. Either provide at least one tool or omit the field entirely.", "tools"
        )
    choice = body.get("tool_choice", "auto" if tools else "none")
    if choice in ("none", None):
        return "none", None
    if tools is None:
        raise _invalid("When using `tool_choice`, `tools` must be set.", "tool_choice")
    if choice == "auto":
        return "auto", None
    if choice == "required":
        return "required", None
    if not isinstance(choice, dict):
        raise _invalid(
            f'Invalid value for `tool_choice`: {choice}! Only named tools, "none", "auto" or "required" are supported.',
            "tool_choice",
        )
    return "named", _named_tool(choice, tools)


def _named_tool(choice: JsonObject, tools: Sequence[JsonObject]) -> str:
    usage = 'Correct usage: `{"type": "function", "function": {"name": "my_function"}}`'
    function = choice.get("function")
    if not isinstance(function, dict):
        raise _invalid(f"Invalid value for `function`: `{function}` in `tool_choice`! {usage}", "tool_choice.function")
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise _invalid(f"Expected field `name` in `function` in `tool_choice`! {usage}", "tool_choice.function.name")
    if all((tool.get("function") or {}).get("name") != name for tool in tools):
        raise _invalid("The tool specified in `tool_choice` does not match any of the specified `tools`", "tool_choice")
    return name


def _shape(body: JsonObject) -> dict[str, Any] | None:
    outputs = body.get("structured_outputs") or {}
    if outputs.get("choice"):
        return {"choice": outputs["choice"]}
    schema = outputs.get("json")
    if isinstance(schema, str):
        schema = read_json(schema.encode())
    if schema is not None:
        return {"schema": schema}
    wanted = body.get("response_format") or {}
    if not isinstance(wanted, dict) or not isinstance(wanted.get("json_schema") or {}, dict):
        raise Refused(400, "body.response_format: Input should be a valid dictionary", kind="Bad Request")
    if wanted.get("type") == "json_object":
        return {"schema": {"type": "object"}}
    if wanted.get("type") != "json_schema":
        return None
    if wanted.get("json_schema") is None:
        raise _invalid(
            "When response_format type is 'json_schema', the 'json_schema' field must be provided.", "response_format"
        )
    return {"schema": wanted["json_schema"].get("schema") or {}}
