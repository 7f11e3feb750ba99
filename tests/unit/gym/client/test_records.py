"""Responses as records."""

from typing import Any

import pytest

from gym.client.records import read_page, read_result, read_status
from gym.errors import FarmError
from gym.rollout import Outcome

RESULT: dict[str, Any] = {
    "rollout_id": "b:0:1",
    "batch_id": "b",
    "run": "r",
    "group_id": "b:0",
    "task_id": "t",
    "sample_index": 1,
    "attempt": 2,
    "environment": "weather",
    "outcome": "failed",
    "stop_reason": "error",
    "error": {
        "kind": "environment_error",
        "stage": "setup",
        "message": "it broke",
        "retryable": False,
        "attempts": [{"attempt": 1, "worker": "w", "kind": "worker_lost", "message": "gone"}],
    },
    "reward": None,
    "policy_version": {"min": 3, "max": 4},
    "usage": {"input_tokens": 7, "output_tokens": 2, "new_kind_of_tokens": 1},
    "timing": {"total_s": 1.5, "new_stage_s": 1},
    "segments": [
        {"token_ids": [1, 2, 3], "loss_mask": [0, 1, 1], "logprobs": [0, -0.5, -1], "policy_versions": [[1, 3, 4]]}
    ],
    "field_of_a_newer_farm": True,
}


def test_a_result_is_read_whole() -> None:
    result = read_result(RESULT)
    assert result.outcome is Outcome.FAILED
    assert result.error is not None
    assert (result.error.kind, result.error.attempts[0]["worker"]) == ("environment_error", "w")
    assert result.reward is None
    assert result.policy_version == (3, 4)
    assert result.usage.input_tokens == 7
    assert result.timing.total_s == 1.5
    assert result.raw["field_of_a_newer_farm"] is True
    (segment,) = result.segments
    assert list(segment.token_ids) == [1, 2, 3]
    assert list(segment.loss_mask) == [0, 1, 1]
    assert list(segment.logprobs) == [0, -0.5, -1]
    assert segment.policy_versions == [(1, 3, 4)]


@pytest.mark.parametrize("missing", ["rollout_id", "outcome", "environment"])
def test_a_result_without_what_identifies_it_is_an_error(missing: str) -> None:
    with pytest.raises(FarmError, match=missing):
        read_result({name: value for name, value in RESULT.items() if name != missing})


@pytest.mark.parametrize("broken", [None, [], "text", {"outcome": "exploded"}])
def test_what_is_no_result_is_an_error_of_the_tree(broken: Any) -> None:
    with pytest.raises(FarmError, match="cannot be read"):
        read_result(broken)


def test_a_page_without_its_cursor_is_an_error() -> None:
    with pytest.raises(FarmError, match="next_after"):
        read_page({"items": [], "done": True})


@pytest.mark.parametrize(
    ("state", "running", "ended"),
    [("open", 0, False), ("running", 1, False), ("done", 0, True), ("cancelled", 0, True)],
)
def test_a_batch_has_ended_when_it_is_sealed_and_nothing_runs(state: str, running: int, ended: bool) -> None:
    ledger = {"submitted": 2, "running": running, "succeeded": 2 - running, "new_state": 3}
    assert read_status({"batch_id": "b", "run": "r", "state": state, "ledger": ledger}).ended is ended
