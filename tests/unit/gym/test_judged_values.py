"""Rewards that an environment makes of its judges' verdicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from gym.environments.base import Environment, Row
from gym.environments.registry import EnvironmentType, environment_type
from gym.episode import judged_reward
from gym.errors import VerifierFailed
from gym.judges.base import Ask, Question, Verdict
from gym.reward import Reward
from gym.trajectory import Trajectory

ASK = Ask((Question(judge="label", answer="x"),))
VERDICTS = [Verdict(judge="label", version="1", score=0.5)]


def judging(give: Callable[[], Any]) -> EnvironmentType:
    class Judging(Environment[Row]):
        """Gives what a test says."""

        name = "judging"
        judges = ("label",)

        def verify(self, trajectory: Trajectory) -> Ask:
            return ASK

        @classmethod
        def judged(cls, ask: Ask, verdicts: Sequence[Verdict]) -> Any:
            return give()

        @classmethod
        def example_row(cls) -> dict[str, Any]:
            return {"responses_create_params": {"input": "hello"}}

    return environment_type(Judging)


class Unspeakable(Exception):
    """It cannot say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("not now")


def raises(error: BaseException) -> Any:
    raise error


@pytest.mark.parametrize(
    "give", [lambda: np.float32(0.5), lambda: np.mean([0.0, 1.0]), lambda: Reward(np.float64(0.5))]
)
def test_numbers_of_numeric_libraries_are_taken(give: Callable[[], Any]) -> None:
    found = judged_reward(judging(give), ASK, VERDICTS)
    assert (type(found.value), found.value) == (float, 0.5)


@pytest.mark.parametrize(
    ("give", "said"),
    [
        (lambda: {0.5}, "the reward is a value of type set"),
        (lambda: np.float64("nan"), "the reward is .*nan"),
        (lambda: None, "the reward is None"),
        (lambda: Reward(1.0, {"share": object()}), r"reward_components\.share is a value of type object"),
        (lambda: raises(SystemExit(3)), "SystemExit"),
        (lambda: raises(Unspeakable()), "Unspeakable"),
    ],
)
def test_anything_else_is_a_verifier_error_that_names_field_and_type(give: Callable[[], Any], said: str) -> None:
    with pytest.raises(VerifierFailed, match=f"judging, judged: .*{said}"):
        judged_reward(judging(give), ASK, VERDICTS)
