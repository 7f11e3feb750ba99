"""The rules between messages: order, pairs of calls and outputs, arguments that servers can read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gym.wire.chat.request import to_chat_request as from_chat
from gym.wire.history import INVALID_JSON, answered_calls, arguments_as_objects, in_order
from gym.wire.messages.request import to_chat_request as from_messages
from gym.wire.responses.items import to_chat_messages

Json = dict[str, Any]


def asks(*call_ids: str, content: str | None = None) -> Json:
    calls = [{"id": call_id, "type": "function", "function": {"name": "f", "arguments": "{}"}} for call_id in call_ids]
    return {"role": "assistant", "content": content, "tool_calls": calls}


def answers(call_id: str, said: str = "x") -> Json:
    return {"role": "tool", "tool_call_id": call_id, "content": said}


def user(said: str) -> Json:
    return {"role": "user", "content": said}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([asks("a"), user("wait"), answers("a")], [asks("a"), answers("a"), user("wait")]),
        (
            [asks("a", "b"), answers("a"), user("wait"), answers("b"), user("go on")],
            [asks("a", "b"), answers("a"), answers("b"), user("wait"), user("go on")],
        ),
        # ids that restart in every turn
        (
            [asks("a"), answers("a", "1"), asks("a"), user("wait"), answers("a", "2")],
            [asks("a"), answers("a", "1"), asks("a"), answers("a", "2"), user("wait")],
        ),
        (
            [asks("a", "a"), answers("a", "1"), answers("a", "2")],
            [asks("a", "a"), answers("a", "1"), answers("a", "2")],
        ),
        # an answer to nothing stays where it is
        ([user("q"), answers("z"), user("r")], [user("q"), answers("z"), user("r")]),
        ([asks("a"), answers("a"), answers("a")], [asks("a"), answers("a"), answers("a")]),
    ],
)
def test_tool_messages_follow_the_calls_that_they_answer(given: list[Json], expected: list[Json]) -> None:
    assert in_order(given) == expected
    assert in_order(expected) == expected


def test_every_dialect_keeps_the_order() -> None:
    expected = [asks("a"), answers("a"), user("wait")]
    assert from_chat({"messages": [asks("a"), user("wait"), answers("a")]})["messages"] == expected
    use = {"type": "tool_use", "id": "a", "name": "f", "input": {}}
    said = [{"type": "text", "text": "wait"}, {"type": "tool_result", "tool_use_id": "a", "content": "x"}]
    body = {"max_tokens": 5, "messages": [{"role": "assistant", "content": [use]}, {"role": "user", "content": said}]}
    assert from_messages(body)["messages"] == expected
    items = [
        {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"},
        {"role": "user", "content": "wait"},
        {"type": "function_call_output", "call_id": "a", "output": "x"},
    ]
    assert to_chat_messages(items) == expected


def test_one_turn_comes_back_as_one_turn() -> None:
    def call(call_id: str) -> Json:
        return {"type": "function_call", "call_id": call_id, "name": "f", "arguments": "{}"}

    def message(text: str) -> Json:
        return {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}

    outputs = [{"type": "function_call_output", "call_id": call_id, "output": "x"} for call_id in ("a", "b")]
    found = to_chat_messages([message("Look."), call("a"), message("\n"), call("b"), *outputs])
    assert found == [asks("a", "b", content="Look.\n"), answers("a"), answers("b")]


def item(call_id: str, number: int) -> Json:
    return {"type": "function_call", "call_id": call_id, "name": "f", "arguments": str(number)}


def output(call_id: str, number: int) -> Json:
    return {"type": "function_call_output", "call_id": call_id, "output": str(number)}


@pytest.mark.parametrize(
    "items",
    [
        [item("a", 1), output("a", 1), item("a", 2), output("a", 2)],
        [item("a", 1), item("a", 2), output("a", 1), output("a", 2)],
        [item("a", 1), item("b", 2), output("b", 2), output("a", 1)],
        [item("a", 1), {"role": "user", "content": "wait"}, item("a", 2), output("a", 2), output("a", 1)],
    ],
)
def test_outputs_belong_to_the_latest_unanswered_call_of_their_id(items: list[Json]) -> None:
    pairs = answered_calls(items)
    assert len(pairs) == 2
    assert [(call["arguments"], found and found["output"]) for call, found in pairs] == [("1", "1"), ("2", "2")]


def test_a_call_without_an_output_has_none() -> None:
    assert answered_calls([item("a", 1), item("a", 2), output("a", 1), output("z", 9)]) == [
        (item("a", 1), output("a", 1)),
        (item("a", 2), None),
    ]


@pytest.mark.parametrize("written", ['{"city": "He said "Oslo""}', "[1]", '"text"', "nonsense", "[" * 5000])
def test_arguments_that_are_no_object_are_wrapped(written: str) -> None:
    calls = asks("a")
    calls["tool_calls"][0]["function"]["arguments"] = written
    chat = arguments_as_objects({"messages": [user("q"), calls]})
    assert chat is not None
    assert json.loads(chat["messages"][1]["tool_calls"][0]["function"]["arguments"]) == {INVALID_JSON: written}
    responses = arguments_as_objects({"input": [item("a", 1) | {"arguments": written}]})
    assert responses is not None
    assert json.loads(responses["input"][0]["arguments"]) == {INVALID_JSON: written}


@pytest.mark.parametrize(
    "body", [{"messages": [asks("a")]}, {"input": "hi"}, {"input": [item("a", 1) | {"arguments": "{}"}]}]
)
def test_a_request_that_can_be_read_is_sent_as_it_is(body: Json) -> None:
    assert arguments_as_objects(body) is None
