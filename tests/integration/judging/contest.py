"""An environment whose answers are compared within their group."""

from __future__ import annotations

import asyncio
from typing import Any

from gym.environments.base import Environment, Row
from gym.judges.base import Ask, Question
from gym.trajectory import Trajectory


class Contest(Environment[Row]):
    """Says good or bad by its seed, and bad late."""

    name = "contest"
    agent = "single_turn"
    judges = ("ranked",)

    async def verify(self, trajectory: Trajectory) -> Ask:
        answer = "good" if self.seed % 2 else "bad"
        if answer == "bad":
            await asyncio.sleep(1.5)
        return Ask((Question(judge="ranked", answer=answer),))

    @classmethod
    def example_row(cls) -> dict[str, Any]:
        return {"responses_create_params": {"input": "hello"}}
