"""Calls that the request demanded, in formats that have no grammar for them: the server makes the model write JSON.

Behaves as `DelegatingParser._extract_tool_calls` in vLLM's `parser/abstract_parser.py`.
"""

from __future__ import annotations

import json
from typing import Any

from gym.jsontypes import JsonObject
from gym.wire.parsers.found import NotACall, ParsedCalls, call


def calls(content: str | None, choice: str | JsonObject) -> ParsedCalls:
    """For a named function the whole text is its arguments; for "required" it is a list of `name` and `parameters`.

    No text is left: one that is no such list is lost.
    """
    text = content or ""
    if isinstance(choice, dict):
        return ParsedCalls(((choice["function"]["name"], text),) if text.strip() else (), None)
    try:
        return ParsedCalls(_listed(json.loads(text)), None)
    except (ValueError, RecursionError):
        return ParsedCalls((), None)


def _listed(values: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(values, list):
        raise NotACall("demanded calls are a list")
    return tuple(_call(value) for value in values)


def _call(value: Any) -> tuple[str, str]:
    parameters = value.get("parameters") if isinstance(value, dict) else value
    if not isinstance(value, dict) or not (parameters is None or isinstance(parameters, dict)):
        raise NotACall("a demanded call is an object with `name` and `parameters`")
    return call(value.get("name"), parameters)
