from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from gym.environments.code import CodeRow

TESTS = {"tests": ["assert double(2) == 4"]}
HUMAN = {"test": "def check(candidate):\n    assert candidate(1)\n"}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({}, "give one of `test` and `tests`"),
        ({**TESTS, "test": HUMAN["test"], "entry_point": "x"}, "give one of"),
        ({"tests": ["assert ("]}, "number 0: it is no Python"),
        ({"tests": ["print(1)"]}, "number 0 has no assert"),
        ({"test": HUMAN["test"]}, "needs an `entry_point`"),
        ({"test": "assert True", "entry_point": "x"}, "no function `check`"),
    ],
)
def test_a_bad_row_is_named(row: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        CodeRow.model_validate(row)
