"""A counter that tools move: the smallest environment with state of its own.

The rows of NeMo Gym's `example_session_state_mgmt` run as they are. State is on the instance, and an instance serves
one rollout, so that two rollouts of the same row never see each other.
"""

from __future__ import annotations

import random
from typing import Annotated

from pydantic import Field

from gym.environments.base import Environment, Row, tool
from gym.jsontypes import JsonObject
from gym.trajectory import Trajectory


class CounterRow(Row):
    """The counter's start and its expected end."""

    initial_count: int = 0
    expected_count: int


class StatefulCounter(Environment[CounterRow]):
    """Move a counter by tool calls to where the task wants it.

    Reward 1.0 when the counter ends at `expected_count`, else 0.0; the model's text does not matter.
    """

    name = "stateful_counter"
    row_model = CounterRow

    def __init__(self, row: CounterRow, *, seed: int) -> None:
        super().__init__(row, seed=seed)
        self.count = row.initial_count

    @tool
    def increment_counter(
        self, count: Annotated[int, Field(description="How much to add; may be negative.")]
    ) -> dict[str, bool]:
        """Add to the counter."""
        self.count += count
        return {"success": True}

    @tool
    def get_counter_value(self) -> dict[str, int]:
        """Read the counter."""
        return {"count": self.count}

    def verify(self, trajectory: Trajectory) -> float:  # noqa: ARG002  the state alone decides
        """Compare the counter with the row."""
        return 1.0 if self.count == self.row.expected_count else 0.0

    @classmethod
    def example_row(cls) -> JsonObject:
        """Return a row with two additions."""
        return cls._row(3, [1, 2])

    @classmethod
    def demo_rows(cls, count: int, seed: int) -> list[JsonObject]:
        """Return rows with one to three additions from a random start."""
        rng = random.Random(seed)
        return [
            cls._row(rng.randint(0, 50), [rng.randint(1, 20) for _ in range(rng.randint(1, 3))]) for _ in range(count)
        ]

    @classmethod
    def _row(cls, start: int, steps: list[int]) -> JsonObject:
        text = f"{' then '.join(f'add {step}' for step in steps)} then get the count"
        return {
            "responses_create_params": {"input": [{"role": "user", "content": text}]},
            "environment": cls.name,
            "initial_count": start,
            "expected_count": start + sum(steps),
        }
