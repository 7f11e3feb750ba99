"""Qwen3's own format: `<think>` reasoning, and tool calls as XML-like tags (`qwen3_coder`, `qwen3_xml`).

    <tool_call>
    <function=NAME>
    <parameter=KEY>
    VALUE
    </parameter>
    </function>
    </tool_call>

Behaves as vLLM's `parser/qwen3.py` over `parser/engine/`, on a finished text, but for values: a closing tag ends one
only where the grammar lets it. A call whose parameters were cut or have no name keeps its text as its arguments, so
that it is a malformed call. Markup that names no function disappears.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, auto

from gym.jsontypes import JsonObject
from gym.wire.parsers.found import ParsedCalls, call, encodable
from gym.wire.parsers.schema_types import properties_of, typed

_TAG = re.compile(r"(</?think>|</?tool_call>|<function=|</function>|</parameter>|>)")
_REASONING_END = re.compile(r"</think>|(?=<tool_call>)")
_PARAMETER = re.compile(r"<\s*parameter\s*=")
_PARAMETER_END = re.compile(r"<\s*(?:(?P<closed>/\s*parameter\s*>)|parameter\s*=)")
_INSIDE = re.compile(
    r"<(?:(?P<ended>/function>)|(?P<began>function=)|\s*(?:(?P<closed>/\s*parameter\s*>)|parameter\s*=))"
)
_AFTER_PARAMETER = re.compile(r"\s*+(?:<\s*parameter\s*=|</function>|\Z)")
_AFTER_FUNCTION = re.compile(r"\s*+(?:</?tool_call>|<function=|\Z)")
_NAME_IN_JSON = re.compile(r'"name"\s*:\s*"([^"]*)"')


def split_reasoning(text: str) -> tuple[str | None, str | None]:
    """Reasoning and the rest. The text begins inside the reasoning, whether or not it says `<think>`.

    Reasoning ends at `</think>` or where a call begins; without either all of the text is reasoning. Every later
    `</think>` is taken out.
    """
    end = _REASONING_END.search(text)
    reasoning = text[: end.start()] if end else text
    rest = text[end.end() :] if end else ""
    return reasoning.replace("<think>", "") or None, rest.replace("</think>", "") or None


class _State(Enum):
    TEXT = auto()
    OPENED = auto()
    """After `<tool_call>`: all but a function's begin is skipped."""
    NAME = auto()
    ARGUMENTS = auto()
    CLOSED = auto()
    """After `</function>`: as OPENED, until `</tool_call>`."""


_NEXT = {
    (_State.TEXT, "<tool_call>"): _State.OPENED,
    (_State.TEXT, "<function="): _State.NAME,
    (_State.OPENED, "</tool_call>"): _State.TEXT,
    (_State.OPENED, "<function="): _State.NAME,
    (_State.NAME, ">"): _State.ARGUMENTS,
    (_State.NAME, "</function>"): _State.CLOSED,
    (_State.ARGUMENTS, "</function>"): _State.CLOSED,
    (_State.CLOSED, "</tool_call>"): _State.TEXT,
    (_State.CLOSED, "<tool_call>"): _State.OPENED,
    (_State.CLOSED, "<function="): _State.NAME,
}
_BEGINS_CALL = {
    (_State.TEXT, "<tool_call>"),
    (_State.TEXT, "<function="),
    (_State.CLOSED, "<tool_call>"),
    (_State.CLOSED, "<function="),
}


@dataclass(slots=True)
class _Open:
    """A call as it is being read."""

    name: list[str] = field(default_factory=list)
    body: str = ""
    closed: bool = False


def xml_calls(text: str, tools: list[JsonObject], *, keep_think: bool) -> ParsedCalls:
    """Calls with their arguments typed by the tools' schemas; with calls, text after the first one is lost.

    `keep_think` leaves a stray `</think>` in the text: right where no reasoning parser has taken it out.
    """
    before, after, opened = _read(text, keep_think=keep_think)
    names = [_name_of(each) for each in opened]
    content = before if any(names) else before + after
    if opened and not content.strip():
        content = ""
    calls = tuple(
        _call(name, each, properties_of(tools, name))
        for each, name in zip(opened, map(str.strip, names), strict=True)
        if name
    )
    return ParsedCalls(calls, (content.strip() if calls else content) or None)


def text_outside_calls(text: str, *, keep_think: bool) -> str | None:
    """The text where tools were offered and calls forbidden: calls that the model wrote all the same are lost."""
    before, after, _ = _read(text, keep_think=keep_think)
    return before + after or None


def _read(text: str, *, keep_think: bool) -> tuple[str, str, list[_Open]]:
    """The text before the first call, all other text outside calls, and the calls."""
    state = _State.TEXT
    opened: list[_Open] = []
    outside: tuple[list[str], list[str]] = ([], [])
    place = 0
    while place < len(text):
        if state is _State.ARGUMENTS:
            end = _body_end(text, place)
            opened[-1].body = text[place : len(text) if end is None else end]
            opened[-1].closed = end is not None
            place = len(text) if end is None else end + len("</function>")
            state = _State.CLOSED
            continue
        tag = _TAG.search(text, place)
        begin = tag.start() if tag else len(text)
        piece = text[place:begin] if begin > place or tag is None else tag[0]
        place += len(piece)
        step = (state, piece)
        if step in _BEGINS_CALL:
            opened.append(_Open())
        if step in _NEXT:
            state = _NEXT[step]
        elif state is _State.NAME:
            opened[-1].name.append(piece)
        elif state is _State.TEXT and (keep_think or piece != "</think>"):
            outside[bool(opened)].append(piece)
    return "".join(outside[0]), "".join(outside[1]), opened


def _body_end(text: str, place: int) -> int | None:
    """The place of the `</function>` that ends a call; one within a value does not, None where there is no end."""
    is_open = False
    first: int | None = None
    for tag in _INSIDE.finditer(text, place):
        if tag["ended"]:
            if not is_open or _AFTER_FUNCTION.match(text, tag.end()):
                return tag.start()
            first = tag.start() if first is None else first
        elif tag["began"]:
            if first is not None:  # also keeps the reading of many calls linear
                return first
        elif tag["closed"]:
            is_open = is_open and not _AFTER_PARAMETER.match(text, tag.end())
        else:
            is_open = True
    return first


def _name_of(opened: _Open) -> str:
    """The name in the tag, or else one that a model put into JSON between the tags; with the spaces around it."""
    if not opened.name and (inside := _NAME_IN_JSON.search(opened.body)):
        return inside.group(1)
    return "".join(opened.name)


def _call(name: str, opened: _Open, properties: JsonObject) -> tuple[str, str]:
    """The call; with what the model wrote for its arguments, which is no JSON, where they do not fit the grammar."""
    try:
        return call(name, _arguments(opened, properties))
    except _Misfit:
        return encodable(name, f"<function={name}>{opened.body}")


class _Misfit(Exception):
    """Parameters that do not fit the grammar."""


def _arguments(opened: _Open, properties: JsonObject) -> JsonObject:
    """The parameters; the last of two with one name. Those of no known schema stay text."""
    found: JsonObject = {}
    for key, value in _parameters(opened):
        schema = properties.get(key)
        found[key] = typed(value, schema) if isinstance(schema, dict) else value
    return found


def _parameters(opened: _Open) -> Iterator[tuple[str, str]]:
    """Keys and values: from `<parameter=KEY>` to its end, the next parameter or the call's end, in linear time."""
    body, place = opened.body, 0
    while begin := _PARAMETER.search(body, place):
        named = body.find(">", begin.end())
        key = body[begin.end() : named].lstrip()
        if named < 0 or not key or any(each in key for each in "<\r\n"):
            raise _Misfit(key)
        end, place = _value_end(body, named + 1)
        if end is None:
            if not opened.closed:
                raise _Misfit(key)
            end = len(body)
        yield key, _without_breaks(body[named + 1 : end])


def _value_end(body: str, start: int) -> tuple[int | None, int]:
    """The end of a value, None where it has none, and where to read on."""
    last: tuple[int, int] | None = None
    for tag in _PARAMETER_END.finditer(body, start):
        if not tag["closed"]:
            return last or (tag.start(), tag.start())
        last = tag.start(), tag.end()
        if _AFTER_PARAMETER.match(body, tag.end()):
            return last
    return last or (None, len(body))


def _without_breaks(value: str) -> str:
    """The value without the line breaks that the format puts around it."""
    begin = 2 if value.startswith("\r\n") else int(value.startswith("\n"))
    value = value[begin:]
    return value.removesuffix("\r\n") if value.endswith("\r\n") else value.removesuffix("\n")
