"""What the golden cases, which are the server's, do not say of `parse_reply` and `finish_reason`."""

import json

import pytest

from gym.errors import SettingsError
from gym.wire.parsers import finish_reason, parse_reply

NOW = [{"type": "function", "function": {"name": "now", "parameters": {"properties": {"at": {"type": "object"}}}}}]
CALL = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'


def test_call_ids_are_made_of_the_prefix_and_the_place_of_the_call() -> None:
    message = parse_reply(CALL + CALL, tool_parser="hermes", reasoning_parser=None, tools=NOW, id_prefix="r1_2")
    assert [call["id"] for call in message["tool_calls"]] == ["call_r1_2_0", "call_r1_2_1"]


def test_a_reply_without_parsers_is_its_text() -> None:
    message = parse_reply(CALL, tool_parser=None, reasoning_parser=None, tools=NOW, id_prefix="t")
    assert message == {"role": "assistant", "content": CALL}


@pytest.mark.parametrize(
    ("tool_parser", "reasoning_parser", "named"), [("gpt9", None, "hermes"), (None, "gpt9", "deepseek_r1")]
)
def test_an_unknown_parser_is_refused_with_the_names_that_are_known(
    tool_parser: str | None, reasoning_parser: str | None, named: str
) -> None:
    with pytest.raises(SettingsError, match=rf"'gpt9'.*{named}"):
        parse_reply("", tool_parser=tool_parser, reasoning_parser=reasoning_parser, tools=[], id_prefix="t")


@pytest.mark.parametrize(
    ("parser", "text"),
    [
        ("hermes", '<tool_call>{"name": "now", "arguments": {"a": "\\ud83d"}}</tool_call>'),
        ("llama3_json", '{"name": "now", "parameters": {"a": "\\ud83d"}}'),
        ("pythonic", "[now(a='\\ud83d')]"),
        (
            "qwen3_coder",
            '<tool_call><function=now><parameter=at>{"a": "\\ud83d"}</parameter></function></tool_call>',
        ),
    ],
)
def test_a_call_that_cannot_be_sent_as_utf8_is_text(parser: str, text: str) -> None:
    message = parse_reply(text, tool_parser=parser, reasoning_parser=None, tools=NOW, id_prefix="t")
    assert message == {"role": "assistant", "content": text}


def test_arguments_nested_deeper_than_python_reads_are_text() -> None:
    text = CALL.replace("{}", "[" * 100_000)
    message = parse_reply(text, tool_parser="hermes", reasoning_parser=None, tools=NOW, id_prefix="t")
    assert message["content"] == text


def test_a_parameter_nested_deeper_than_python_reads_stays_text() -> None:
    deep = "[" * 100_000
    text = f"<tool_call><function=now><parameter=at>{deep}</parameter></function></tool_call>"
    message = parse_reply(text, tool_parser="qwen3_coder", reasoning_parser=None, tools=NOW, id_prefix="t")
    assert json.loads(message["tool_calls"][0]["function"]["arguments"]) == {"at": deep}


@pytest.mark.parametrize("unit", ["<tool_call>", "[now(a=", "now(), ", "<function=now>", "<parameter=a>", "{", "[f() "])
@pytest.mark.parametrize("parser", ["hermes", "llama3_json", "pythonic", "qwen3_coder"])
@pytest.mark.timeout(10)
def test_a_model_that_repeats_itself_costs_no_more_than_its_text(parser: str, unit: str) -> None:
    text = unit * (32_000 // len(unit))
    message = parse_reply(text, tool_parser=parser, reasoning_parser="qwen3", tools=NOW, id_prefix="t", thinking=False)
    assert "role" in message


def test_tools_whose_schemas_say_nothing_leave_parameters_as_text() -> None:
    text = "<tool_call><function=now><parameter=at>5</parameter></function></tool_call>"
    for function in (
        {"name": "now"},
        {"name": "now", "parameters": None},
        {"name": "now", "parameters": {"type": "object"}},
    ):
        tools = [{"type": "function", "function": function}]
        message = parse_reply(text, tool_parser="qwen3_coder", reasoning_parser=None, tools=tools, id_prefix="t")
        assert message["tool_calls"][0]["function"]["arguments"] == '{"at": "5"}'


def test_a_generation_that_was_cut_keeps_its_reason_unless_a_call_came_out() -> None:
    called = {"role": "assistant", "content": None, "tool_calls": [{"id": "call_t_0"}]}
    assert finish_reason(called, "length") == "tool_calls"
    assert finish_reason({"role": "assistant", "content": "x"}, "length") == "length"
    assert finish_reason(called, "length", "required") == "length"
    assert finish_reason(called, "stop", {"type": "function", "function": {"name": "now"}}) == "stop"
