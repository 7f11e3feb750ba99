"""The messages of a chat request, checked as far as anything here reads them; they go on without their nulls.

A message with a fault is refused here, so that it is not mistaken for one of the server's.
"""

from __future__ import annotations

from gym.jsontypes import JsonObject
from gym.wire.checks import as_list, as_name, as_object, as_text
from gym.wire.errors import WireError
from gym.wire.history import in_order

_ROLES = ("system", "developer", "user", "assistant", "tool")
_TEXTS = ("refusal", "reasoning", "reasoning_content", "name", "tool_call_id")
_REFUSED = {
    "function_call": "is the form before `tool_calls`",
    "audio": "nothing is stored to refer to: say what was spoken as text",
}


def checked_messages(value: object) -> list[JsonObject]:
    """The messages. Raises WireError."""
    given = as_list(value, "messages")
    if not given:
        raise WireError("messages", "is empty")
    return in_order(
        [_checked(as_object(each, f"messages.{number}"), f"messages.{number}") for number, each in enumerate(given)]
    )


def _checked(message: JsonObject, field: str) -> JsonObject:
    role = message.get("role")
    if role not in _ROLES:
        raise WireError(f"{field}.role", f"{role!r} is not one of {', '.join(_ROLES)}")
    content = message.get("content")
    if content is None:
        if role != "assistant":
            raise WireError(f"{field}.content", "is missing: a text or a list of parts")
    elif not isinstance(content, str):
        _check_parts(content, f"{field}.content")
    if message.keys() <= {"role", "content"}:
        return message
    for name, fault in _REFUSED.items():
        if message.get(name) is not None:
            raise WireError(f"{field}.{name}", fault)
    for name in _TEXTS:
        if message.get(name) is not None:
            as_text(message[name], f"{field}.{name}")
    if message.get("tool_calls") is not None:
        for number, call in enumerate(as_list(message["tool_calls"], f"{field}.tool_calls")):
            _check_call(call, f"{field}.tool_calls.{number}")
    if None not in message.values():
        return message
    return {name: inner for name, inner in message.items() if inner is not None or name == "content"}


def _check_parts(value: object, field: str) -> None:
    for number, given in enumerate(as_list(value, field)):
        part = as_object(given, f"{field}.{number}")
        name = as_name(part.get("type"), f"{field}.{number}.type")
        if name == "file":
            raise WireError(f"{field}.{number}.type", "the model server takes no files: send what is in it")
        if name in ("text", "refusal"):
            as_text(part.get(name), f"{field}.{number}.{name}")


def _check_call(value: object, field: str) -> None:
    call = as_object(value, field)
    if call.get("type", "function") != "function":
        raise WireError(f"{field}.type", "only calls of functions can be sent")
    as_name(call.get("id"), f"{field}.id")
    function = as_object(call.get("function"), f"{field}.function")
    as_name(function.get("name"), f"{field}.function.name")
    as_text(function.get("arguments"), f"{field}.function.arguments")
