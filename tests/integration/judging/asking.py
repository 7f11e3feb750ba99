"""An environment that asks the judges which its row names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gym.environments.base import Environment, Row
from gym.judges.base import Ask, Question, Verdict
from gym.reward import Reward
from gym.trajectory import Trajectory


class AskingRow(Row):
    """Names of the judges to ask, in order; `odd` makes a reward that cannot be stored."""

    asks: list[str]
    odd: bool = False


class Asking(Environment[AskingRow]):
    """Rewards the least score."""

    name = "asking"
    row_model = AskingRow
    agent = "single_turn"
    judges = ("fragile", "equality")

    def verify(self, trajectory: Trajectory) -> Ask:
        said, reference = trajectory.final_text, "[[say Verdict: DIFFERENT]]"  # which only `equality` obeys
        questions = tuple(Question(judge=judge, answer=said, reference=reference) for judge in self.row.asks)
        return Ask(questions, {"odd": self.row.odd})

    @classmethod
    def judged(cls, ask: Ask, verdicts: Sequence[Verdict]) -> Reward:
        reward = Reward(min(verdict.score for verdict in verdicts))
        if ask.facts["odd"]:
            object.__setattr__(reward, "components", {"length": object()})
        return reward

    @classmethod
    def example_row(cls) -> dict[str, Any]:
        return {"responses_create_params": {"input": "hello"}, "asks": ["fragile"]}
