# ruff: noqa: E501  programs are easier to read on one line
"""Wrong answers that forge replies or end their sandbox are scored 0.0; right answers beside them 1.0."""

from __future__ import annotations

from typing import Any

import pytest

from gym.environments.builtin.code import Code, CodeRow
from gym.reward import Reward
from gym.sandbox.pool import configure_loop_pool
from gym.sandbox.settings import SandboxSettings
from gym.trajectory import Trajectory
from tests.unit.gym.sandbox.forgeries import FORGERIES, at_load, in_call

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("pools")]
ROW: dict[str, Any] = {"tests": ["assert double(2) == 4", "assert double(0) == 0", "assert double('a') == 'aa'"]}
QUICK, REST = list(FORGERIES)[:24], list(FORGERIES)[24:]  # a container takes seconds
RIGHT = [
    "def double(x):\n    return x + x",
    "def double(x):\n    return x * 2",
    "double = lambda x: x + x",
    "def double(x):\n    print('passed')\n    return x + x",
    "import os\ndef double(x):\n    open('/work/note', 'w').write('x')\n    return x + x",
    "import threading\ndef double(x):\n    t = threading.Thread(target=print); t.start(); t.join()\n    return x + x",
    "import subprocess\ndef double(x):\n    subprocess.run(['true'], check=True)\n    return x + x",
    "import multiprocessing.pool\nwith multiprocessing.pool.ThreadPool(2) as pool:\n    pool.map(abs, [1])\ndef double(x):\n    return x + x",
    "class Doubler:\n    def __call__(self, x):\n        return x + x\ndouble = Doubler()",
    "import asyncio, sqlite3\nsqlite3.connect('/work/d').execute('create table t (n)')\ndef double(x):\n    async def add():\n        return x + x\n    return asyncio.run(add())",
]


async def score(answer: str, row: dict[str, Any] | None = None) -> Reward:
    environment = Code(CodeRow.model_validate(row or ROW), seed=0)
    message = {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "output_text", "text": f"```python\n{answer}\n```"}],
    }
    try:
        return await environment.verify(Trajectory(params={}, items=[message], tool_calls=[]))
    finally:
        await environment.close()


def forged(name: str) -> str:
    """One half of them run when the answer is loaded, the other in its function."""
    place = at_load if list(FORGERIES).index(name) % 2 else in_call
    return place(FORGERIES[name])


@pytest.mark.parametrize("name", FORGERIES)
@pytest.mark.parametrize("boxes", ["bubblewrap"], indirect=True)
async def test_a_wrong_answer_that_forges_is_scored_nothing(name: str, boxes: SandboxSettings) -> None:
    configure_loop_pool(boxes.model_copy(update={"wall_s": 3}))
    assert (await score(forged(name))).value == 0.0


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in REST)])
@pytest.mark.parametrize("boxes", ["docker"], indirect=True)
async def test_a_wrong_answer_in_a_container_is_scored_nothing(name: str, boxes: SandboxSettings) -> None:
    configure_loop_pool(boxes.model_copy(update={"wall_s": 3}))
    assert (await score(forged(name))).value == 0.0


ODD = {
    "a lone surrogate": "'\ud800'",
    "a NUL": "x = '\0'",
    "brackets without end": "(" * 100_000,
    "signs without end": "-" * 100_000 + "1",
    "calls without end": "x" + "()" * 40_000,
    "nothing": " ",
    "a marker of the harness": '{"finished": true}\n{"passed": true}',
}
ROWS = {
    "asserts": ROW,
    "check": {
        "prompt": "def double(x):\n",
        "entry_point": "double",
        "test": "def check(candidate):\n    assert candidate(2) == 4\n",
    },
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("boxes", ["bubblewrap"], indirect=True)
async def test_an_answer_that_is_hard_to_read_is_scored_nothing(kind: str, odd: str, boxes: SandboxSettings) -> None:
    configure_loop_pool(boxes.model_copy(update={"wall_s": 3}))
    assert (await score(ODD[odd], ROWS[kind])).value == 0.0


@pytest.mark.parametrize("answer", RIGHT)
async def test_a_right_answer_is_scored_in_full(answer: str, boxes: SandboxSettings) -> None:
    configure_loop_pool(boxes)
    assert (await score(answer)).value == 1.0
