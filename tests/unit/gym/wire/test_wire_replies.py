"""Parts of replies that other packages build on: finish, usage, whole responses of many turns, broken answers."""

from typing import Any

import pytest

from gym.errors import ModelUnreachable
from gym.trajectory import Usage
from gym.wire.chat.completion import choice_of
from gym.wire.errors import BadCompletion, WireError
from gym.wire.messages.request import to_chat_request
from gym.wire.responses.reply import build_response, finish_of, output_items, to_response, usage_of


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("stop", "stop"),
        ("tool_calls", "stop"),
        ("length", "max_tokens"),
        ("content_filter", "content_filter"),
        (None, "stop"),
        ("repetition", "stop"),
    ],
)
def test_a_finish_reason_is_one_of_three(reason: str | None, finish: str) -> None:
    assert finish_of({"finish_reason": reason}) == finish


@pytest.mark.parametrize("reason", ["abort", "error"])
def test_an_answer_that_the_server_gave_up_is_no_answer(reason: str) -> None:
    with pytest.raises(BadCompletion):
        finish_of({"finish_reason": reason})


def test_a_broken_answer_may_be_asked_for_again() -> None:
    assert issubclass(BadCompletion, ModelUnreachable)
    assert BadCompletion.retryable


@pytest.mark.parametrize(
    "completion",
    [
        {},
        {"choices": []},
        {"choices": None},
        {"choices": [{}, {}]},
        {"choices": ["x"]},
        {"choices": [{"message": None}]},
    ],
)
def test_an_answer_without_exactly_one_message_is_broken(completion: dict[str, Any]) -> None:
    with pytest.raises(BadCompletion):
        choice_of(completion)


@pytest.mark.parametrize("message", [{"content": 5}, {"content": "x", "tool_calls": [{"id": "c"}]}, {"reasoning": []}])
def test_a_message_of_the_wrong_shape_is_broken(message: dict[str, Any]) -> None:
    with pytest.raises(BadCompletion):
        output_items(message, id_prefix="1")


def test_usage_reads_all_four_counts() -> None:
    completion = {
        "usage": {
            "prompt_tokens": 10,
            "completion_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 4},
            "completion_tokens_details": {"reasoning_tokens": 2},
        }
    }
    assert usage_of(completion) == Usage(10, 5, 4, 2)
    assert usage_of({"usage": None}) == Usage()


def test_a_response_of_a_whole_rollout_carries_its_items_and_sums() -> None:
    output = [{"type": "function_call_output", "call_id": "c1", "output": "x"}]
    response = build_response(
        response_id="resp_b:t:0",
        created_at=12.5,
        model="m",
        output=output,
        usage=Usage(10, 5, 4, 2),
        request={"input": "hi", "temperature": 0.5, "tools": None},
        status="incomplete",
        incomplete_reason="max_output_tokens",
    )
    assert response["output"] is output
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["usage"]["total_tokens"] == 15
    assert (response["temperature"], response["tools"], response["object"]) == (0.5, [], "response")


def test_responses_do_not_share_what_a_caller_may_change() -> None:
    completion = {"choices": [{"index": 0, "message": {"content": "x"}, "finish_reason": "stop"}]}
    one = to_response({"input": "a"}, completion, response_id="resp_1", created_at=1.0)
    one["metadata"]["changed"] = True
    one["tools"].append("changed")
    other = to_response({"input": "a"}, completion, response_id="resp_2", created_at=1.0)
    assert (other["metadata"], other["tools"]) == ({}, [])


def test_a_wire_error_says_which_field_and_why() -> None:
    error = WireError("tools.0.type", "hosted")
    assert (error.field, error.message, error.details) == (
        "tools.0.type",
        "`tools.0.type`: hosted",
        {"field": "tools.0.type"},
    )


def test_a_body_that_is_no_object_is_refused() -> None:
    with pytest.raises(WireError, match="expected an object, this is a list"):
        to_chat_request([])  # type: ignore[arg-type]  # what a client may send
