"""The farm's results as NeMo Gym's clients see them."""

from __future__ import annotations

from typing import Any

import pytest

from gym.wire.nemo_gym import failed_response, row_key, verify_response

ROW: dict[str, Any] = {"responses_create_params": {"input": [{"role": "user", "content": "hi"}]}, "answer": 7}


def result(**fields: Any) -> dict[str, Any]:
    call = {"has_tokens": True, "output_tokens": 2, "reply_items": 1}
    return {
        "rollout_id": "b:0:0",
        "outcome": "succeeded",
        "reward": 1.0,
        "responses_create_params": ROW["responses_create_params"],
        "response": {"output": [{"type": "function_call"}, {"type": "function_call_output"}, {"type": "message"}]},
        "calls": [{**call, "request_items": 1}, {**call, "request_items": 3}],
        "segments": [
            {
                "token_ids": [1, 2, 3, 4, 5, 6, 7],
                "logprobs": [0, 0, -0.5, -0.25, 0, -1, -2],
                "policy_versions": [[2, 4, 3], [5, 7, 3]],
            }
        ],
        **fields,
    }


def test_tokens_stand_on_the_last_item_of_each_call() -> None:
    output = verify_response(ROW, result())["response"]["output"]

    assert output[0]["prompt_token_ids"] == [1, 2]
    assert output[0]["generation_token_ids"] == [3, 4]
    assert output[0]["generation_log_probs"] == [-0.5, -0.25]
    assert "prompt_token_ids" not in output[1]
    assert output[2]["prompt_token_ids"] == [1, 2, 3, 4, 5]
    assert output[2]["generation_token_ids"] == [6, 7]


def test_tokens_that_do_not_match_the_calls_one_to_one_are_not_guessed() -> None:
    lost = [{"has_tokens": False, "output_tokens": 2, "reply_items": 1, "request_items": 1}]
    output = verify_response(ROW, result(calls=lost))["response"]["output"]

    assert not any("generation_token_ids" in item for item in output)


@pytest.mark.parametrize(
    ("fields", "failure"),
    [
        ({"outcome": "failed", "error": {"kind": "environment_error", "message": "boom"}}, "environment_error"),
        ({"outcome": "cancelled", "error": None, "stop_reason": "cancelled"}, "cancelled"),
        ({"error": None}, "unscored"),
    ],
)
def test_what_has_no_reward_is_marked_and_never_0(fields: dict[str, Any], failure: str) -> None:
    answer = verify_response(ROW, result(reward=None, **fields))

    assert answer["reward"] is None
    assert answer["_ng_failure_class"] == failure
    assert answer["answer"] == 7, "the row's own fields come back"


def test_a_row_that_cannot_be_run_has_the_shape_of_a_response() -> None:
    answer = failed_response(ROW, kind="bad_row", message="no")

    assert answer["response"]["output"] == []
    assert answer["_ng_failure_terminal"] is True


def test_rows_without_an_index_are_never_the_same() -> None:
    assert row_key(ROW, "digest") is None
    assert row_key({"_ng_task_index": 1, "_ng_rollout_index": 2}, "d") == "ng.1.2.-.d"
