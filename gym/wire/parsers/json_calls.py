"""Tool calls written as JSON: `hermes` and `llama3_json`.

One call that cannot be read makes the whole reply plain text: a server that says half of what the model asked for
would train it on the wrong thing. Behaves as vLLM's `tool_parsers/hermes_tool_parser.py` and `llama_tool_parser.py`.
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
    while start >= 0:
        start += len(_OPEN)
        end = text.find(_CLOSE, start)
        if end < 0:
            yield text[start:]
            return
        yield text[start:end]
        start = text.find(_OPEN, end + len(_CLOSE))


def llama_json(text: str, tools: list[JsonObject]) -> ParsedCalls:  # noqa: ARG001 - one signature for all tool parsers
    """JSON objects with `name` and `parameters` (or `arguments`), `;` or anything else between them.

    Any `{` outside an object already read must begin a call, else the reply is plain text. With calls there is no
    content: `<|python_tag|>` and the text around the objects are lost.
    """
    calls = []
    end = -1
    try:
        for brace in _BRACE.finditer(text):
            # A brace that touches the object before it counts as inside: so does the server, which then gives up.
            if brace.start() > end:
                value, end = _DECODER.raw_decode(text, brace.start())
                calls.append(_named(value, "arguments" if "arguments" in value else "parameters"))
    except (ValueError, RecursionError):
        return ParsedCalls((), text)
    return ParsedCalls(tuple(calls), None if calls else text)


def _named(value: Any, arguments: str) -> tuple[str, str]:
    if not isinstance(value, dict) or "name" not in value or arguments not in value:
        raise NotACall(f"a call is an object with `name` and `{arguments}`")
    return call(value["name"], value[arguments])
