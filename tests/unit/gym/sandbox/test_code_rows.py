from __future__ import annotations

import time
from typing import Any

import pytest
from pydantic import ValidationError

from gym.environments.builtin.code import CodeRow, answer_of

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


@pytest.mark.parametrize("piece", ["``` ", "```py\n", "```python", "`", "``", "```\n``"])
@pytest.mark.parametrize("end", [" " * 100_000, ""])
def test_the_answers_block_is_found_in_linear_time(piece: str, end: str) -> None:
    start = time.process_time()
    answer_of(piece * 20_000 + "```" + end)
    assert time.process_time() - start < 5


def test_the_last_block_is_the_answer() -> None:
    assert answer_of("```python\na\n``` and ``` Py \nb\n```") == "b\n"
    assert answer_of("a ```\nb\n```") == "b\n"
    assert answer_of("a") == "a"
