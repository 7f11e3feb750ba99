"""An environment whose reward is a classifier's: how surely an answer is clean language."""

from __future__ import annotations

from typing import Any

from gym.environments.base import Environment, Row
from gym.judges.base import Ask, Question
from gym.trajectory import Trajectory


class Civility(Environment[Row]):
    """Asks the judge `civility`."""

    name = "civility"
    agent = "single_turn"
    judges = ("civility",)

    def verify(self, trajectory: Trajectory) -> Ask:
        return Ask((Question(judge="civility", answer=trajectory.final_text),))

    @classmethod
    def example_row(cls) -> dict[str, Any]:
        return {"responses_create_params": {"input": "hello"}}
