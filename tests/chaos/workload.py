"""Workload of a farm while it is being killed: rollouts of 2 to 6 turns of several environments. Pure.

Every row has a `task_id`, so that (batch, task, sample) names a rollout before the farm has seen it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gym.environments.builtin.sql import Sql
from gym.environments.builtin.weather import Weather

LEAST_TURNS, MOST_TURNS = 2, 6
SAMPLES = 4
JUDGED_SHARE = 0.4  # of the counters
JOURNALED, JUDGED = "journaled_counter", "judged_counter"

Task = tuple[str, str, int]  # batch, task, sample: a rollout
Row = dict[str, Any]
How = Literal["whole", "appended"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """A batch. `appended` ones get their rows in `portions` while processes die, `whole` ones in their creation.

    `cancel_at` is the share of its rollouts that have ended when it is cancelled; None leaves it alone.
    """

    batch_id: str
    portions: tuple[tuple[Row, ...], ...]
    how: How
    cancel_at: float | None = None

    @property
    def rollouts(self) -> set[Task]:
        """Everything that it asks for."""
        return {
            (self.batch_id, row["task_id"], sample)
            for portion in self.portions
            for row in portion
            for sample in range(SAMPLES)
        }


def plan_batches(seed: int, rollouts: int, journal: Path, *, least_turns: int = LEAST_TURNS) -> tuple[BatchPlan, ...]:
    """A batch that comes whole, one whose rows are appended, and one that is cancelled midway: 55, 30 and 15 %.

    `journal` is where the counters note that they were opened and closed. At least 40 rollouts.
    """
    groups = rollouts // SAMPLES
    cancelled = max(1, groups * 15 // 100)
    appended = max(1, groups * 30 // 100)
    rows = _rows(seed, groups, journal, least_turns)
    cut = groups - cancelled - appended
    return (
        BatchPlan(batch_id=f"whole-{seed}", portions=(rows[:cut],), how="whole"),
        BatchPlan(batch_id=f"appended-{seed}", portions=_portions(rows[cut : cut + appended], 10), how="appended"),
        BatchPlan(batch_id=f"cancelled-{seed}", portions=(rows[cut + appended :],), how="whole", cancel_at=0.3),
    )


def _rows(seed: int, count: int, journal: Path, least_turns: int) -> tuple[Row, ...]:
    chance = random.Random(seed)
    weather, sql = Weather.demo_rows(count, seed), Sql.demo_rows(count, seed)
    rows: list[Row] = []
    for number in range(count):
        kind = chance.random()
        if kind < 0.2 and least_turns <= 2:
            row = weather[number]
        elif kind < 0.3 and least_turns <= 4:
            row = sql[number]
        else:
            row = counter_row(chance, turns=chance.randint(max(3, least_turns), MOST_TURNS), journal=journal)
            row["environment"] = JUDGED if chance.random() < JUDGED_SHARE else JOURNALED
        rows.append({**row, "task_id": f"t{number}"})
    return tuple(rows)


def counter_row(chance: random.Random, *, turns: int, journal: Path) -> Row:
    """A counter that is moved in all turns but the last two, of which one reads it and one says what it is."""
    steps = [chance.randint(1, 20) for _ in range(turns - 2)]
    start = chance.randint(0, 50)
    text = f"{' then '.join(f'add {step}' for step in steps)} then get the count"
    return {
        "responses_create_params": {"input": [{"role": "user", "content": text}]},
        "environment": JOURNALED,
        "initial_count": start,
        "expected_count": start + sum(steps),
        "journal": str(journal),
    }


def _portions(rows: Sequence[Row], count: int) -> tuple[tuple[Row, ...], ...]:
    size = max(1, len(rows) // count)
    return tuple(tuple(rows[start : start + size]) for start in range(0, len(rows), size))
