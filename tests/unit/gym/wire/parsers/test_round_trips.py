"""Calls written in a parser's own format come back as the same calls, whatever their arguments are."""

import json
import keyword
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gym.wire.parsers import REASONING_PARSERS, TOOL_PARSERS, finish_reason, parse_reply

Json = Any
Calls = list[tuple[str, dict[str, Json]]]

# No format can escape its own tags: one inside an argument ends the call for the server too.
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<"), max_size=12)
names = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
numbers = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
calls = st.lists(st.tuples(names, st.dictionaries(names, values, max_size=3)), min_size=1, max_size=4)
spoken = st.text("abc .,\n", max_size=12).map(str.strip)
FRAGMENTS = (
    *("<think>", "</think>", "<tool_call>", "</tool_call>", "<function=", "now", ">", "</function>"),
    *(
        "<parameter=",
        "</parameter>",
        "<|python_tag|>",
        '{"name": "now", "arguments": {}}',
        "{",
        "}",
        "[",
        "]",
        "(",
        ")",
    ),
    *("=", ",", ";", '"', "'", "\\", "\n", " ", "1", "f'", "**", "\ud800", "\0"),
)
junk = st.lists(st.sampled_from(FRAGMENTS), max_size=16).map("".join)


def hermes(written: Calls) -> str:
    return "\n".join(
        f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"
        for name, arguments in written
    )


def llama(written: Calls) -> str:
    return "; ".join(json.dumps({"name": name, "parameters": arguments}) for name, arguments in written)


def python_tag(written: Calls) -> str:
    return f"<|python_tag|>{llama(written)}"


def pythonic(written: Calls) -> str:
    inner = (
        f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})" for name, arguments in written
    )
    return f"[{', '.join(inner)}]"


def qwen3(written: Calls) -> str:
    return "\n".join(f"<tool_call>\n{_function(name, arguments)}\n</tool_call>" for name, arguments in written)


def _function(name: str, arguments: dict[str, Json]) -> str:
    lines = (f"<parameter={key}>\n{_value(value)}\n</parameter>\n" for key, value in arguments.items())
    return f"<function={name}>\n{''.join(lines)}</function>"


def _value(value: Json) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def schema_of(value: Json) -> dict[str, Json]:
    """A schema that says of which type the value is."""
    kinds = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    return {"type": kinds.get(type(value), "null")}


def tools_of(written: Calls) -> list[dict[str, Json]]:
    return [
        {
            "type": "function",
            "function": {
                "name": name,
                "parameters": {"properties": {key: schema_of(value) for key, value in arguments.items()}},
            },
        }
        for name, arguments in written
    ]


def said(message: dict[str, Json]) -> Calls:
    functions = [call["function"] for call in message.get("tool_calls", [])]
    return [(function["name"], json.loads(function["arguments"])) for function in functions]


def _plain_names(written: Calls) -> bool:
    """Python's own words cannot be names in a Python call."""
    words = [word for name, arguments in written for word in (name, *arguments)]
    return not any(keyword.iskeyword(word) for word in words)


@pytest.mark.parametrize(
    ("parser", "write"),
    [
        pytest.param("hermes", hermes, id="hermes"),
        pytest.param("llama3_json", llama, id="llama3_json"),
        pytest.param("llama4_json", python_tag, id="python_tag"),
    ],
)
@given(written=calls)
def test_calls_written_as_json_come_back(parser: str, write: Callable[[Calls], str], written: Calls) -> None:
    message = parse_reply(
        write(written), tool_parser=parser, reasoning_parser=None, tools=tools_of(written), id_prefix="t"
    )
    assert said(message) == written
    assert message["content"] is None
    assert finish_reason(message, "stop") == "tool_calls"


@given(written=calls.filter(_plain_names))
def test_calls_written_as_a_python_list_come_back(written: Calls) -> None:
    message = parse_reply(
        pythonic(written), tool_parser="pythonic", reasoning_parser=None, tools=tools_of(written), id_prefix="t"
    )
    assert said(message) == written


@given(name=names, arguments=st.dictionaries(names, values, max_size=3))
def test_calls_written_as_tags_come_back_with_the_types_of_their_schema(name: str, arguments: dict[str, Json]) -> None:
    written = [(name, arguments), (name, arguments)]
    message = parse_reply(
        qwen3(written), tool_parser="qwen3_coder", reasoning_parser=None, tools=tools_of(written), id_prefix="t"
    )
    assert said(message) == written


@pytest.mark.parametrize(("parser", "write"), [("hermes", hermes), ("qwen3_xml", qwen3)])
@pytest.mark.parametrize("reasoning_parser", sorted(REASONING_PARSERS))
@given(written=calls, thought=spoken, content=spoken)
def test_reasoning_text_and_calls_come_apart_again(
    parser: str, write: Callable[[Calls], str], reasoning_parser: str, written: Calls, thought: str, content: str
) -> None:
    text = f"<think>\n{thought}\n</think>{content}{write(written)}"
    message = parse_reply(
        text, tool_parser=parser, reasoning_parser=reasoning_parser, tools=tools_of(written), id_prefix="t"
    )
    assert message["reasoning"] == f"\n{thought}\n"
    assert message["content"] == (content or None)
    assert [name for name, _ in said(message)] == [name for name, _ in written]


@pytest.mark.parametrize("parser", sorted(TOOL_PARSERS))
@pytest.mark.parametrize("reasoning_parser", [None, *sorted(REASONING_PARSERS)])
@given(text=junk, choice=st.sampled_from([None, "none", "required", {"function": {"name": "now"}}]))
def test_any_text_is_a_message_and_no_error(parser: str, reasoning_parser: str | None, text: str, choice: Json) -> None:
    message = parse_reply(
        text,
        tool_parser=parser,
        reasoning_parser=reasoning_parser,
        tools=tools_of([("now", {})]),
        id_prefix="t",
        tool_choice=choice,
    )
    assert set(message) <= {"role", "content", "reasoning", "tool_calls"}
    assert message["content"] is None or isinstance(message["content"], str)
    if choice == "none":
        assert "tool_calls" not in message
