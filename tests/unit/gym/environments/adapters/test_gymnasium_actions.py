"""Actions that a Gymnasium space does not hold are refused before NumPy casts them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from gym.environments.adapters.gymnasium_text import read_action

BYTES = spaces.Box(0, 255, (2,), np.uint8)
REALS = spaces.Box(-np.inf, np.inf, (1,), np.float32)
MULTI = spaces.MultiDiscrete([3, 4])
BINARY = spaces.MultiBinary(2)


@pytest.mark.parametrize(
    ("space", "given"),
    [
        (MULTI, "[1.9, 2]"),
        (MULTI, "[true, 2]"),
        (MULTI, "[4294967297, 18446744073709551617]"),
        (BINARY, "[0.5, 1]"),
        (BYTES, "[1.7, 1]"),
        (BYTES, "[256, 1]"),
        (BYTES, "[-1, 1]"),
        (BYTES, '["1", 1]'),
        (REALS, "[1e39]"),
        (REALS, "[-1e39]"),
        (REALS, "[true]"),
        (REALS, "[null]"),
        (spaces.Tuple((MULTI, REALS)), "[[1.5, 2], [0.5]]"),
        (spaces.Tuple((spaces.Text(1), spaces.Text(1))), '"ab"'),
        (spaces.Dict(a=spaces.Tuple((BYTES,))), '{"a": [[0.5, 1]]}'),
        (spaces.Dict(a=BYTES), '{"a": [1, 1], "b": 2}'),
        (spaces.Sequence(MULTI), "[[1.9, 2]]"),
        (spaces.Sequence(BYTES, stack=True), "[[1.9, 2]]"),
        (spaces.OneOf((BYTES, REALS)), "[0, [0.5, 1]]"),
    ],
)
def test_a_number_that_a_cast_would_change_is_no_action(space: Any, given: str) -> None:
    with pytest.raises(ValueError, match="is none; an action is"):
        read_action(space, (), given)


@pytest.mark.parametrize(
    ("space", "given"),
    [
        (MULTI, "[2, 3]"),
        (BINARY, "[true, 0]"),
        (BYTES, "[255, 0]"),
        (REALS, "[0.1]"),
        (REALS, "[3]"),
        (spaces.Dict(a=spaces.Tuple((BYTES,))), '{"a": [[0, 1]]}'),
        (spaces.Sequence(MULTI), "[[1, 2], [0, 0]]"),
        (spaces.OneOf((BYTES, REALS)), "[1, [0.5]]"),
    ],
)
def test_what_a_space_holds_is_an_action(space: Any, given: str) -> None:
    assert space.contains(read_action(space, (), given))
