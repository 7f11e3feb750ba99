"""Environments that give values of other libraries, and values that cannot be stored: for a farm that loads them."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np

from gym.environments.base import Environment, Row, Step, SteppedEnvironment, tool
from gym.jsontypes import JsonObject
from gym.judges.base import Ask, Question
from gym.reward import Reward
from gym.trajectory import Trajectory


class Awkward:
    """Its methods raise."""

    def __float__(self) -> float:
        raise RuntimeError("not now")

    def __repr__(self) -> str:
        raise RuntimeError("not now")


class Tensor:
    """A scalar as torch's are."""

    def item(self) -> float:
        return 0.5


def _circular() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def _deep() -> list[Any]:
    value: list[Any] = []
    for _ in range(5000):
        value = [value]
    return value


MADE: dict[str, Callable[[], Any]] = {
    "float64": lambda: np.float64(0.5),
    "float32": lambda: np.float32(0.5),
    "float16": lambda: np.float16(0.5),
    "array": lambda: np.array(0.5),
    "tensor": Tensor,
    "decimal": lambda: Decimal("0.5"),
    "fraction": lambda: Fraction(1, 2),
    "bool": lambda: np.bool_(True),
    "int": lambda: np.int64(1),
    "plain": lambda: 0.5,
    "nan": lambda: np.float64("nan"),
    "inf": lambda: float("inf"),
    "set": lambda: {"a"},
    "bytes": lambda: b"x",
    "object": object,
    "awkward": Awkward,
    "vector": lambda: np.zeros(3),
    "long": lambda: 10**400,
    "none": lambda: None,
    "text": lambda: "1.0",
    "surrogate": lambda: "\ud83c",
    "circular": _circular,
    "deep": _deep,
    "huge": lambda: np.zeros(10**8, dtype=np.int8),
    "big_text": lambda: "x" * (300 * 2**20),
    "big_list": lambda: ["é" * 2**20] * 100,
    "long_int": lambda: 123456789012345678901234567890,
    "exit": lambda: (_ for _ in ()).throw(SystemExit(3)),
}


class OddRow(Row):
    """`gives` names a value, `where` the place that it is given in."""

    gives: str = "plain"
    where: str = "reward"
    account: int = 0


class Odd(Environment[OddRow]):
    """Gives one odd value in a place that the row names."""

    name = "odd"
    row_model = OddRow

    def _given(self, where: str, otherwise: Any) -> Any:
        return MADE[self.row.gives]() if self.row.where == where else otherwise

    @tool
    def work(self) -> Any:
        """Give the value."""
        return self._given("tool", "done")

    @tool
    def is_account(self, number: int) -> bool:
        """Whether it is the row's account."""
        return number == self.row.account

    def verify(self, trajectory: Trajectory) -> Any:
        if self.row.where == "account":
            return Reward(1.0 if self.row.account == MADE["long_int"]() else 0.0)
        if self.row.where == "facts":
            return Ask((Question(judge="label", answer="x"),), {"weight": MADE[self.row.gives]()})
        if self.row.where == "component":
            return Reward(1.0, {"share": MADE[self.row.gives]()})
        return self._given("reward", 1.0)

    @classmethod
    def example_row(cls) -> JsonObject:
        return {"responses_create_params": {"input": "Hello"}, "gives": "plain", "where": "reward"}


class OddApart(Odd):
    """Gives the odd values of Odd, in its own process."""

    name = "odd_apart"
    isolation = "process"


class OddSteps(SteppedEnvironment[OddRow]):
    """Gives one odd value in a part of its step, or as its first observation."""

    name = "odd_steps"
    row_model = OddRow

    def reset(self) -> Any:
        return MADE[self.row.gives]() if self.row.where == "reset" else "go"

    def step(self, action: Any) -> Step:
        plain: dict[str, Any] = {"observation": "end", "reward": 1.0, "done": True, "info": {}}
        if self.row.where in plain:
            value = MADE[self.row.gives]()
            plain[self.row.where] = {"value": value} if self.row.where == "info" else value
        return Step(**plain)

    @classmethod
    def example_row(cls) -> JsonObject:
        return {"responses_create_params": {"input": "Hello"}, "gives": "plain", "where": "reward"}
