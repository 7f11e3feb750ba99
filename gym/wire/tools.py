"""Tools, tool choice and output formats as Chat Completions says them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from gym.jsontypes import JsonObject
from gym.wire.checks import as_bool, as_list, as_name, as_object, as_text, only, present
from gym.wire.errors import WireError

_FUNCTION = frozenset({"name", "description", "parameters", "strict"})
_HOSTED = "the model server runs no tools of its own: only function tools can be offered"
_FORM = 'expected "auto", "none", "required" or {"type": "function", "name": …}'


def function_tools(tools: object, field: str = "tools") -> list[JsonObject]:
    """Function tools as the Responses API writes them (flat) or as Chat Completions does (nested)."""
    return [_function_tool(tool, f"{field}.{number}") for number, tool in enumerate(as_list(tools, field))]


def _function_tool(value: object, field: str) -> JsonObject:
    tool = present(as_object(value, field))
    if tool.pop("type", None) != "function":
        raise WireError(f"{field}.type", _HOSTED)
    for name, default in (("defer_loading", False), ("async", False), ("allowed_callers", ["direct"])):
        if name in tool and tool[name] == default:
            del tool[name]
    if "function" in tool:
        only(tool, ("function",), field)
        field += ".function"
        tool = present(as_object(tool["function"], field))
    only(tool, _FUNCTION, field)
    as_name(tool.get("name"), f"{field}.name")
    if "parameters" in tool:
        as_object(tool["parameters"], f"{field}.parameters")
    return {"type": "function", "function": tool}


def add_tools(request: JsonObject, tools: list[JsonObject], choice: object, parallel: object) -> None:
    """Write tools, `tool_choice` and `parallel_tool_calls` into a chat request.

    Without tools the last two say nothing and are left out, except a choice that demands a call, which is refused. Of
    `allowed_tools` the others are not offered, since no server knows that form.
    """
    names = [tool["function"]["name"] for tool in tools]
    chosen: Any = None
    if choice is not None:
        chosen, allowed = _tool_choice(choice, names)
        if allowed is not None:
            tools = [tool for tool in tools if tool["function"]["name"] in allowed]
    if not tools:
        if chosen not in (None, "auto", "none"):
            raise WireError("tool_choice", "demands a tool call, but there are no tools")
        return
    request["tools"] = tools
    if chosen is not None:
        request["tool_choice"] = chosen
    if parallel is not None:
        request["parallel_tool_calls"] = as_bool(parallel, "parallel_tool_calls")


def _tool_choice(choice: object, names: Collection[str]) -> tuple[str | JsonObject, set[str] | None]:
    """The choice for the server, and the tools that may be called where that is fewer than all."""
    if isinstance(choice, str):
        if choice not in ("auto", "none", "required"):
            raise WireError("tool_choice", f"{choice!r} is unknown; {_FORM}")
        return choice, None
    form = as_object(choice, "tool_choice")
    if form.get("type") == "function":
        name = _chosen_name(form, "tool_choice")
        if name not in names:
            raise WireError("tool_choice.name", f"there is no tool {name!r}")
        return {"type": "function", "function": {"name": name}}, None
    if form.get("type") == "allowed_tools":
        inner = as_object(form.get("allowed_tools", form), "tool_choice.allowed_tools")
        if inner.get("mode") not in ("auto", "required"):
            raise WireError("tool_choice.mode", 'expected "auto" or "required"')
        allowed = {
            _chosen_name(as_object(tool, f"tool_choice.tools.{number}"), f"tool_choice.tools.{number}")
            for number, tool in enumerate(as_list(inner.get("tools"), "tool_choice.tools"))
        }
        for name in sorted(allowed.difference(names)):
            raise WireError("tool_choice.tools", f"there is no tool {name!r}")
        return inner["mode"], allowed
    raise WireError("tool_choice.type", f"{form.get('type')!r} is not for the model server; {_FORM}")


def _chosen_name(form: JsonObject, field: str) -> str:
    if form.get("type") != "function":
        raise WireError(f"{field}.type", _HOSTED)
    function = form.get("function")
    return as_name(function.get("name") if isinstance(function, dict) else form.get("name"), f"{field}.name")


def response_format(form: object, field: str) -> JsonObject | None:
    """`text.format` of the Responses API as `response_format`; `None` for plain text."""
    given = present(as_object(form, field))
    match given.pop("type", None):
        case "text":
            return None
        case "json_object":
            return {"type": "json_object"}
        case "json_schema":
            only(given, ("name", "schema", "strict", "description"), field)
            as_text(given.get("name"), f"{field}.name")
            as_object(given.get("schema"), f"{field}.schema")
            return {"type": "json_schema", "json_schema": given}
        case other:
            raise WireError(f"{field}.type", f"{other!r} is not one of text, json_object, json_schema")
