import json

import pytest

from gym.errors import (
    BadRow,
    EnvironmentFailed,
    EnvironmentUnavailable,
    Internal,
    JudgeUnreachable,
    ModelRejected,
    ModelUnreachable,
    RolloutError,
    Stalled,
    TimedOut,
    VerifierFailed,
)
from gym.limits import Limits
from workers.process.retries import back_off_s, retry_in_s

AWAY, RAISED = True, False  # whether an attempt was the infrastructure's fault


def tries(*faults: bool) -> bytes:
    return b"".join(json.dumps({"kind": "any", "retryable": fault}).encode() + b"\n" for fault in faults)


@pytest.mark.parametrize("error", [ModelUnreachable("m"), JudgeUnreachable("m"), EnvironmentUnavailable("m")])
def test_the_infrastructure_has_as_many_attempts_as_max_attempts_says(error: RolloutError) -> None:
    limits = Limits(max_attempts=3)
    assert retry_in_s(error, b"", limits) is not None
    assert retry_in_s(error, tries(AWAY), limits) is not None
    assert retry_in_s(error, tries(AWAY, AWAY), limits) is None


@pytest.mark.parametrize("error", [EnvironmentFailed("m"), VerifierFailed("m"), BadRow("m")])
def test_what_the_data_fails_is_not_tried_again_unless_asked(error: RolloutError) -> None:
    assert retry_in_s(error, b"", Limits()) is None
    asked = Limits(retry_data_errors=2, max_attempts=1)
    assert retry_in_s(error, tries(RAISED), asked) == 0.0
    assert retry_in_s(error, tries(RAISED, RAISED), asked) is None


def test_each_class_uses_up_its_own_budget_only() -> None:
    limits = Limits(max_attempts=2, retry_data_errors=1)
    assert retry_in_s(ModelUnreachable("m"), tries(RAISED), limits) is not None
    assert retry_in_s(VerifierFailed("m"), tries(AWAY), limits) == 0.0
    assert retry_in_s(ModelUnreachable("m"), tries(RAISED, AWAY), limits) is None
    assert retry_in_s(VerifierFailed("m"), tries(RAISED, AWAY), limits) is None


@pytest.mark.parametrize("error", [TimedOut("m"), Stalled("m"), ModelRejected("m"), Internal("m")])
def test_the_rest_is_final(error: RolloutError) -> None:
    assert retry_in_s(error, b"", Limits(max_attempts=9, retry_data_errors=9)) is None


def test_the_back_off_doubles_up_to_30_s() -> None:
    longest = [1, 2, 4, 8, 16, 30, 30]
    for failures, most in enumerate(longest, 1):
        assert most / 2 <= back_off_s(failures) <= most
