"""Tool calls written as JSON: `hermes` and `llama3_json`.

One call that cannot be read makes the whole reply plain text: a server that says half of what the model asked for
would train it on the wrong thing. Behaves as vLLM's `tool_parsers/hermes_tool_parser.py` and `llama_tool_parser.py`,
but for tags within JSON, arguments given as JSON text, and prose with braces after a call.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from gym.jsontypes import JsonObject
from gym.wire.parsers.found import NotACall, ParsedCalls, call

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_DECODER = json.JSONDecoder()
_BRACE = re.compile(r"\{")
_BEGINS_OBJECT = re.compile(r'\{\s*+["}]')
_SPACE = re.compile(r"\s*+")


def hermes(text: str, tools: list[JsonObject]) -> ParsedCalls:  # noqa: ARG001 - one signature for all tool parsers
    """`<tool_call>{"name": …, "arguments": …}</tool_call>`, the last one perhaps without its end.

    Text before the first call is the content; text between and after the calls is lost.
    """
    start = text.find(_OPEN)
    if start < 0:
        return ParsedCalls((), text)
    try:
        calls = tuple(_named(json.loads(body), "arguments") for body in _bodies(text, start))
    except (ValueError, RecursionError):
        return ParsedCalls((), text)
    return ParsedCalls(calls, text[:start] or None)


def _bodies(text: str, start: int) -> Iterator[str]:
    """Yield the text between each pair of tags; a tag within the JSON is part of it."""
    while start >= 0:
        start += len(_OPEN)
        begin = _SPACE.match(text, start)
        place = begin.end() if begin else start
        try:
            _, inside = _DECODER.raw_decode(text, place)
        except json.JSONDecodeError:
            inside = start
        end = text.find(_CLOSE, inside)
        if end < 0:
            yield text[start:]
            return
        yield text[start:end]
        start = text.find(_OPEN, end + len(_CLOSE))


def llama_json(text: str, tools: list[JsonObject]) -> ParsedCalls:  # noqa: ARG001 - one signature for all tool parsers
    """JSON objects with `name` and `parameters` (or `arguments`), `;` or anything else between them.

    The first `{` must begin a call. After a call, braces of prose and objects without a name are skipped; an object
    that is cut, or that has a name and is no call, makes the reply plain text. With calls there is no content:
    `<|python_tag|>` and the text around the objects are lost.
    """
    calls: list[tuple[str, str]] = []
    end = -1
    try:
        for brace in _BRACE.finditer(text):
            start = brace.start()
            if start < end or (calls and not _BEGINS_OBJECT.match(text, start)):
                continue
            value, end = _DECODER.raw_decode(text, start)
            arguments = "arguments" if "arguments" in value else "parameters"
            if not calls or arguments in value or '"name"' in text[start:end]:
                calls.append(_named(value, arguments))
    except (ValueError, RecursionError):
        return ParsedCalls((), text)
    return ParsedCalls(tuple(calls), None if calls else text)


def _named(value: Any, arguments: str) -> tuple[str, str]:
    if not isinstance(value, dict) or "name" not in value or arguments not in value:
        raise NotACall(f"a call is an object with `name` and `{arguments}`")
    given = value[arguments]
    if isinstance(given, str):
        given = _decoded(given)
    return call(value["name"], given)


def _decoded(text: str) -> Any:
    """Return the object that a JSON text holds, else the text, which makes the call malformed."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return found if isinstance(found, dict) else text
