"""Every registered parser reads 200 KB of a degenerate text in a moment, whatever its shape."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle

import pytest

from gym.jsontypes import JsonObject
from gym.wire.parsers import REASONING_PARSERS, TOOL_PARSERS, parse_reply

SIZE = 200_000
MOST_CPU_S = 3.0  # on a slow machine; a quadratic reading takes more than 20 s
TOOLS: list[JsonObject] = [
    {
        "type": "function",
        "function": {
            "name": "f",
            "parameters": {
                "type": "object",
                "properties": {
                    "a": {"anyOf": [{"type": kind} for kind in ("null", "integer", "number", "boolean", "object")]},
                    "b": {"type": "array"},
                    "c": {"type": "no such type"},
                },
            },
        },
    }
]
CHOICES = ("auto", "auto", "auto", "required", "none", {"type": "function", "function": {"name": "f"}})

XML_MARKS = (
    *("<tool_call>", "</tool_call>", "<function=", "<function=f>", "</function>", "<parameter=", "<parameter=a>"),
    *("</parameter>", "<think>", "</think>", "<", ">", "</", "< parameter =", "<  /  parameter  "),
)
XML_PAIRS = (
    *("<tool_call><function=f>", "<tool_call></tool_call>", "<function=f></function>", "<parameter=a><parameter=b>"),
    *("<parameter=a>1</parameter>", "<parameter=a>[[", "<think></think>", "</function><function=f>", "<<parameter=a"),
    *("<function=><parameter=a>x", '<function=>{"name": "', '<function="name":"', "<\n", "<" + " " * 50, ">\n"),
)
XML_BEGINS = ("", "<tool_call><function=f>", "<tool_call><function=", "<tool_call><function=f><parameter=a>")
JSON_UNITS = (
    *(
        "{",
        "}",
        "{}",
        "[",
        "[[{",
        '{"a":',
        '"',
        '\\"',
        "\\u",
        "{;",
        ";{",
        '{"name":',
        '{"name": "f"}',
        "-",
        "1",
        "1.",
        "1e",
    ),
    *(
        '{"name": "f", "parameters": {}}',
        '{"name": "f", "parameters": {}}; ',
        '{"name": "f", "arguments": ',
        "\n",
        " ",
        "{\n",
    ),
    *('<tool_call>{"name": "f", "arguments": {}}</tool_call>', "<tool_call>{", "<|python_tag|>", "<|python_tag|>{"),
)
PYTHON_UNITS = (
    *(
        "a(), ",
        "a()",
        "a() ",
        "a(),",
        "a(b=",
        "a(b=1), ",
        "a(b=1)]",
        ")",
        ")]",
        ") ",
        "[",
        "(",
        "{",
        "a",
        "a.b",
        "-",
        "~",
    ),
    *(
        "1",
        "1 ",
        "0x",
        "0xf",
        "'",
        '"',
        "'''",
        "\\",
        "\\\n",
        "\n",
        " ",
        "\t\n",
        "f'{",
        "f'{a}'",
        "'x' ",
        "f'x' ",
        "lambda:",
    ),
    *(
        "not ",
        "a if ",
        "await ",
        "*",
        "**",
        "x:=",
        "{'a':",
        "{1:",
        "a[",
        "a for a in ",
        "[a,",
        "1,",
        "1+",
        "1<",
        "a=",
        "u'",
    ),
)
PYTHON_BEGINS = ("", "[a(b=")
ENDS = ("", ")]")


def filled(begin: str, unit: str, end: str) -> str:
    count = (SIZE - len(begin) - len(end)) // len(unit)
    return begin + unit * count + end


def nested(opening: str, closing: str) -> str:
    count = SIZE // (len(opening) + len(closing))
    return opening * count + closing * count


def texts() -> Iterator[str]:
    """Repeated marks, pairs of marks, nested and unclosed ones, near misses, behind each beginning of a call."""
    for begin in XML_BEGINS:
        for unit in (*XML_MARKS, *XML_PAIRS) if begin == XML_BEGINS[1] else XML_MARKS:
            yield filled(begin, unit, "")
    for begin in ("", '{"name": "f", "parameters": '):
        for unit in JSON_UNITS:
            yield filled(begin, unit, "")
    ends = cycle(ENDS)
    for begin in PYTHON_BEGINS:
        for unit in PYTHON_UNITS:
            yield filled(begin, unit, next(ends))
    for opening, closing in (("{", "}"), ("[", "]"), ("(", ")"), ('{"a":', "}"), ("<tool_call>", "</tool_call>")):
        for begin in ("", "[a(b=", "<tool_call><function=f><parameter=a>"):
            yield begin + nested(opening, closing) + ")]"


TEXTS = tuple(texts())


def cpu_s(call: Callable[[], object]) -> float:
    began = time.thread_time()
    call()
    return time.thread_time() - began


@pytest.mark.parametrize("parser", sorted(TOOL_PARSERS))
def test_a_tool_parser_reads_any_text_in_linear_time(parser: str) -> None:
    for text, choice in zip(TEXTS, cycle(CHOICES), strict=False):
        read = partial(
            parse_reply,
            text,
            tool_parser=parser,
            reasoning_parser=None,
            tools=TOOLS,
            id_prefix="t",
            tool_choice=choice,
        )
        assert cpu_s(read) < MOST_CPU_S, f"{parser}, tool_choice {choice}: {text[:100]!r}"


@pytest.mark.parametrize("parser", sorted(REASONING_PARSERS))
def test_a_reasoning_parser_reads_any_text_in_linear_time(parser: str) -> None:
    for text in TEXTS:
        read = partial(
            parse_reply, text, tool_parser=None, reasoning_parser=parser, tools=TOOLS, id_prefix="t", tool_choice="auto"
        )
        assert cpu_s(read) < MOST_CPU_S, f"{parser}: {text[:100]!r}"
