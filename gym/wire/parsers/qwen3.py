"""Qwen3's own format: `<think>` reasoning, and tool calls as XML-like tags (`qwen3_coder`, `qwen3_xml`).

    <tool_call>
    <function=NAME>
    <parameter=KEY>
    VALUE
    </parameter>
    </function>
    </tool_call>

Behaves as vLLM's `parser/qwen3.py` over `parser/engine/`, on a finished text: calls are read out of broken and cut
markup as far as they can be named, and markup that names nothing disappears.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, auto

from gym.jsontypes import JsonObject
from gym.wire.parsers.found import ParsedCalls, call
from gym.wire.parsers.schema_types import properties_of, typed

_TAG = re.compile(r"(</?think>|</?tool_call>|<function=|</function>|</parameter>|>)")
_REASONING_END = re.compile(r"</think>|(?=<tool_call>)")
_PARAMETER = re.compile(r"<\s*parameter\s*=")
_PARAMETER_END = re.compile(r"<\s*(?:(?P<closed>/\s*parameter\s*>)|parameter\s*=)")
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
    body: list[str] = field(default_factory=list)


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
        call(name, _arguments("".join(each.body), properties_of(tools, name)))
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
    for piece in _pieces(text):
        step = (state, piece)
        if step in _BEGINS_CALL:
            opened.append(_Open())
        if step in _NEXT:
            state = _NEXT[step]
        elif state is _State.NAME:
            opened[-1].name.append(piece)
        elif state is _State.ARGUMENTS:
            opened[-1].body.append(piece)
        elif state is _State.TEXT and (keep_think or piece != "</think>"):
            outside[bool(opened)].append(piece)
    return "".join(outside[0]), "".join(outside[1]), opened


def _pieces(text: str) -> Iterator[str]:
    return (piece for piece in _TAG.split(text) if piece)


def _name_of(opened: _Open) -> str:
    """The name in the tag, or else one that a model put into JSON between the tags; with the spaces around it."""
    if not opened.name and (inside := _NAME_IN_JSON.search("".join(opened.body))):
        return inside.group(1)
    return "".join(opened.name)


def _arguments(body: str, properties: JsonObject) -> JsonObject:
    """The closed parameters; the last of two with one name. Those of no known schema stay text."""
    found: JsonObject = {}
    for key, value in _parameters(body):
        schema = properties.get(key)
        found[key] = typed(value, schema) if isinstance(schema, dict) else value
    return found


def _parameters(body: str) -> Iterator[tuple[str, str]]:
    """Keys and values: from `<parameter=KEY>` to its end or the next parameter, in linear time."""
    place = 0
    while begin := _PARAMETER.search(body, place):
        named = body.find(">", begin.end())
        end = _PARAMETER_END.search(body, named + 1) if named >= 0 else None
        if end is None:
            return  # nothing that follows has an end either
        yield body[begin.end() : named].lstrip(), body[named + 1 : end.start()].removeprefix("\n").removesuffix("\n")
        place = end.end() if end["closed"] else end.start()
