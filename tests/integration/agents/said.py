"""An environment that looks for a text in the last message."""

from __future__ import annotations

from typing import Any

from gym.environments.base import Environment, Row, tool
from gym.trajectory import Trajectory


class SaidRow(Row):
    wanted: str = ""


class Said(Environment[SaidRow]):
    """Say the wanted text."""

    name = "said"
    row_model = SaidRow

    def setup(self) -> None:
        self.asked = 0

    @tool
    def hint(self) -> str:
        """The wanted text, and how often it has been asked for."""
        self.asked += 1
        return f"{self.row.wanted} ({self.asked})"

    def verify(self, trajectory: Trajectory) -> float:
        return float(self.row.wanted in trajectory.final_text)

    @classmethod
    def example_row(cls) -> dict[str, Any]:
        return {"responses_create_params": {"input": "Say hello."}, "wanted": "hello"}
