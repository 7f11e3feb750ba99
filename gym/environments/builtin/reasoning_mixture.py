"""Rows from several datasets of reasoning_gym, by weight, and harder or easier as the policy does well or badly.

    mixture = Mixture({"chain_sum": Source(weight=2, level=0), "leg_counting": Source()}, seed=1)
    batch = await farm.submit(mixture.rows(512), run="grpo-a", num_samples=8)
    async for result in batch.results():
        mixture.score(result.task_id, result.reward)

Invariants. The same seed and scores make the same rows. A row holds the configuration it was made with, so it means the
same whatever the levels are later. Rollouts without a reward say nothing about a level.
"""

from __future__ import annotations

import random
import re
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from gym.environments.builtin.reasoning_gym import reasoning_row
from gym.errors import Invalid
from gym.jsontypes import JsonObject

_SOURCE = re.compile(r"^(?P<name>[a-z0-9_]+)(?:=(?P<weight>[0-9]+(?:\.[0-9]+)?))?(?:@(?P<level>[0-9]+))?$")
_TASK = re.compile(r"^(?P<name>[a-z0-9_]+)-[0-9]+-[0-9]+(?:-L(?P<level>[0-9]+))?$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A dataset's part: its share by weight, its configuration, and the initial level of its curriculum.

    Without a level the curriculum is not used. The configuration takes precedence over the curriculum.
    """

    weight: float = 1.0
    level: int | None = None
    config: JsonObject = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Rule for changing a dataset's level: after `window` rewards at its level, by their mean."""

    window: int = 64
    raise_at: float = 0.8
    lower_at: float = 0.2


class Mixture:
    """Source of rows that keeps each dataset's level. Raises Invalid for datasets that reasoning_gym does not have."""

    def __init__(self, sources: Mapping[str, Source], *, seed: int = 0, pace: Pace | None = None) -> None:
        if not sources or not all(0 < source.weight < float("inf") for source in sources.values()):
            raise Invalid("invalid_mixture", "a mixture needs datasets, each with a weight above 0")
        self._sources = dict(sources)
        self._seed = seed
        self._pace = pace or Pace()
        self._next = 0
        self.levels: dict[str, int] = {}
        self._highest: dict[str, int] = {}
        self._rewards: dict[str, deque[float]] = {}
        for name, source in self._sources.items():
            if source.level is not None:
                self._highest[name] = highest_level(name)
                self._set_level(name, source.level)

    def rows(self, count: int) -> Iterator[JsonObject]:
        """Return the next `count` rows, at the current levels."""
        names = list(self._sources)
        weights = [self._sources[name].weight for name in names]
        for _ in range(count):
            index, self._next = self._next, self._next + 1
            [name] = random.Random(f"{self._seed}:{index}").choices(names, weights)
            level = self.levels.get(name)
            config = self._sources[name].config
            if level is None:
                yield reasoning_row(name, seed=self._seed, index=index, config=config)
                continue
            row = reasoning_row(name, seed=self._seed, index=index, config=level_config(name, level) | config)
            yield row | {"task_id": f"{row['task_id']}-L{level}", "level": level}

    def score(self, task_id: str, reward: float | None) -> int | None:
        """Record the reward of a rollout of one of these rows. Returns the dataset's level if this changed it.

        Rewards of rows of another level than the current one do not count; nor do other tasks.
        """
        found = _TASK.match(task_id)
        if reward is None or found is None or found["level"] is None:
            return None
        name, level = found["name"], int(found["level"])
        if self.levels.get(name) != level:
            return None
        rewards, pace = self._rewards[name], self._pace
        rewards.append(reward)
        if len(rewards) < pace.window:
            return None
        mean = sum(rewards) / len(rewards)
        following = level + (mean >= pace.raise_at) - (mean <= pace.lower_at)
        if not (0 <= following <= self._highest[name] and self._can_be_made(name, following)):
            following = level
        self._set_level(name, following)
        return following if following != level else None

    def state(self) -> JsonObject:
        """Return the state as JSON, for a trainer's checkpoint."""
        return {
            "next": self._next,
            "levels": dict(self.levels),
            "rewards": {name: list(rewards) for name, rewards in self._rewards.items()},
        }

    def restore(self, state: JsonObject) -> None:
        """Continue from a state of a mixture of the same sources."""
        self._next = int(state["next"])
        for name, level in state["levels"].items():
            if name in self._highest:
                self._set_level(name, int(level))
                self._rewards[name].extend(state["rewards"].get(name, ()))

    def _can_be_made(self, name: str, level: int) -> bool:
        """Return whether the dataset accepts the configuration of its curriculum, which some do not at every level."""
        try:
            reasoning_row(name, seed=0, index=0, config=level_config(name, level) | self._sources[name].config)
        except Invalid:
            return False
        return True

    def _set_level(self, name: str, level: int) -> None:
        if not 0 <= level <= self._highest[name]:
            raise Invalid("invalid_level", f"{name} has levels from 0 to {self._highest[name]}, not {level}")
        self.levels[name] = level
        self._rewards[name] = deque(maxlen=self._pace.window)


def read_source(text: str) -> tuple[str, Source]:
    """Parse `NAME`, with an optional `=WEIGHT` and `@LEVEL`. Raises Invalid."""
    found = _SOURCE.match(text)
    if found is None:
        raise Invalid("invalid_dataset", f"{text!r} is not NAME, NAME=WEIGHT, NAME@LEVEL or NAME=WEIGHT@LEVEL")
    level = found["level"]
    return found["name"], Source(weight=float(found["weight"] or 1), level=int(level) if level is not None else None)


def highest_level(dataset: str) -> int:
    """Return the level from which a dataset's curriculum gets no harder. Raises Invalid without a curriculum."""
    return max((len(each.levels) for each in _curriculum(dataset).attributes.values()), default=1) - 1


def level_config(dataset: str, level: int) -> JsonObject:
    """Return the configuration of a level: each attribute at it, or at its own maximum. Raises Invalid."""
    curriculum = _curriculum(dataset)
    curriculum.set_global_level(level)
    made = curriculum.generate_configuration()
    names: set[str] = set()
    for attribute in curriculum.attributes.values():
        for place in ("field_name", "lower_field_name", "upper_field_name"):
            if isinstance(name := getattr(attribute, place, None), str):
                names.add(name)
    return {name: getattr(made, name) for name in sorted(names)}


def _curriculum(dataset: str) -> Any:
    from reasoning_gym.factory import create_curriculum

    try:
        return create_curriculum(dataset)
    except ValueError as error:
        raise Invalid("invalid_dataset", f"reasoning_gym has no curriculum for `{dataset[:80]}`") from error
