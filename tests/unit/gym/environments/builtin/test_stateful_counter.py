from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable

import pytest

from gym.environments.builtin.stateful_counter import StatefulCounter
from gym.environments.hosting.session import EnvironmentSession
from gym.trajectory import Trajectory

pytestmark = pytest.mark.anyio

NEMO_GYM_ROW = {
    "responses_create_params": {"input": [{"content": "add 1 then add 2 then get the count", "role": "user"}]},
    "expected_count": 6,
    "initial_count": 3,
}


async def test_a_row_of_nemo_gym_runs_as_it_is(open_session: Callable[..., EnvironmentSession]) -> None:
    session = open_session(StatefulCounter, NEMO_GYM_ROW)
    await session.setup()
    assert (await session.verify(Trajectory(params={}))).value == 0.0
    for step in (1, 2):
        call = await session.call_tool("increment_counter", json.dumps({"count": step}))
        assert json.loads(call.output) == {"success": True}
    assert json.loads((await session.call_tool("get_counter_value", "{}")).output) == {"count": 6}
    assert (await session.verify(Trajectory(params={}))).value == 1.0


async def test_state_never_leaks_between_hundreds_of_interleaved_rollouts_of_the_same_row(
    open_session: Callable[..., EnvironmentSession],
) -> None:
    async def roll_out(number: int) -> None:
        session = open_session(StatefulCounter, NEMO_GYM_ROW, seed=number)
        await session.setup()
        rng = random.Random(number)
        count = 3
        for _ in range(20):
            step = rng.randint(-5, 5)
            count += step
            await session.call_tool("increment_counter", json.dumps({"count": step}))
            await asyncio.sleep(0)
            read = await session.call_tool("get_counter_value", "{}")
            assert json.loads(read.output) == {"count": count}
            await asyncio.sleep(0)
        assert (await session.verify(Trajectory(params={}))).value == float(count == 6)
        await session.close()

    async with asyncio.TaskGroup() as group:
        for number in range(300):
            group.create_task(roll_out(number))
    assert NEMO_GYM_ROW["initial_count"] == 3
