"""What the golden cases, which are the server's, do not say of `parse_reply` and `finish_reason`."""

import json

import pytest

from gym.errors import SettingsError
from gym.jsontypes import JsonObject
from gym.wire.parsers import finish_reason, parse_reply
from gym.wire.parsers.found import NotACall
from gym.wire.parsers.qwen3 import xml_calls

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


WRITE = [{"type": "function", "function": {"name": "write", "parameters": {"properties": {"n": {"type": "number"}}}}}]


def coder(body: str) -> str:
    text = f"<tool_call>\n<function=write>\n{body}</function>\n</tool_call>"
    message = parse_reply(text, tool_parser="qwen3_coder", reasoning_parser=None, tools=WRITE, id_prefix="t")
    [made] = message["tool_calls"]
    assert made["function"]["name"] == "write"
    return str(made["function"]["arguments"])


@pytest.mark.parametrize(
    ("body", "arguments"),
    [
        ("<parameter=path>\na.txt\n", {"path": "a.txt"}),
        ("<parameter=path>\na.txt\n</parameter>\n<parameter=text>\nhi\n", {"path": "a.txt", "text": "hi"}),
        ("<parameter=text>\na</function>b\n</parameter>\n", {"text": "a</function>b"}),
        ("<parameter=text>\na</parameter>b\n</parameter>\n", {"text": "a</parameter>b"}),
        ("<parameter=text>\na</tool_call>b\n</parameter>\n", {"text": "a</tool_call>b"}),
        ("<parameter=n>\n9223372036854775807\n</parameter>\n", {"n": 9223372036854775807}),
        ("<parameter=n>\n-123456789012345678901\n</parameter>\n", {"n": -123456789012345678901}),
        ("<parameter=text>\na< /function>b\n", {"text": "a< /function>b"}),
        ("<parameter=text>\r\né\r\n</parameter>\r\n", {"text": "é"}),
    ],
)
def test_a_value_ends_where_the_grammar_ends_it(body: str, arguments: object) -> None:
    assert json.loads(coder(body)) == arguments


@pytest.mark.parametrize(
    "after", ["That writes it.", "That writes it.\n</tool_call>", "Then: <function=now></function>"]
)
def test_a_last_value_without_its_end_stops_at_the_call_s_end_before_prose(after: str) -> None:
    calls = xml_calls(f"<tool_call><function=write><parameter=path>\na.txt\n</function>\n{after}", [], keep_think=True)
    assert calls.calls[0] == ("write", '{"path": "a.txt"}')


@pytest.mark.parametrize("body", ["<parameter=path\na.txt\n</parameter>\n", "<parameter=>a</parameter>"])
def test_a_parameter_without_a_name_makes_a_malformed_call(body: str) -> None:
    with pytest.raises(ValueError, match="Expecting value"):
        json.loads(coder(body))


@pytest.mark.parametrize(
    ("parser", "text"),
    [
        ("hermes", '<tool_call>{"name": "write", "arguments": "{\\"a\\": 1}"}</tool_call>'),
        ("llama3_json", '{"name": "write", "parameters": "{\\"a\\": 1}"} as in {x}'),
    ],
)
def test_arguments_as_json_text_are_an_object(parser: str, text: str) -> None:
    message = parse_reply(text, tool_parser=parser, reasoning_parser=None, tools=WRITE, id_prefix="t")
    assert message["tool_calls"][0]["function"]["arguments"] == '{"a": 1}'


LLAMA_CALL = '{"name": "write", "parameters": {"n": 1}}'


def llama(text: str) -> list[str]:
    message = parse_reply(text, tool_parser="llama3_json", reasoning_parser=None, tools=WRITE, id_prefix="t")
    return [each["function"]["arguments"] for each in message.get("tool_calls") or ()]


def test_a_later_llama_call_may_begin_with_another_key() -> None:
    assert llama(LLAMA_CALL + '; {"type": "function", "name": "write", "parameters": {"n": 2}}') == [
        '{"n": 1}',
        '{"n": 2}',
    ]


def test_objects_that_are_no_calls_are_skipped_whole_after_a_llama_call() -> None:
    assert llama(LLAMA_CALL + ' as in {x}, {} or {"a": {"b": {"c": 1}}}') == ['{"n": 1}']


@pytest.mark.parametrize(
    "later",
    ['{"type": "function", "na', '{"name": "write"}', '{"function": {"name": "write", "parameters": {}}}'],
)
def test_a_later_llama_call_that_cannot_be_read_makes_the_reply_plain_text(later: str) -> None:
    assert llama(f"{LLAMA_CALL}; {later}") == []


def test_half_a_surrogate_in_a_malformed_call_is_refused_like_in_any_other() -> None:
    tools: list[JsonObject] = []
    with pytest.raises(NotACall, match="surrogate"):
        xml_calls("<function=write><parameter=>\ud83c</parameter></function>", tools, keep_think=False)
