"""Scores of models that give other libraries' number types, or no numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from aiohttp import ClientSession, web

from workers.judge_server.app import JudgeServer
from workers.judge_server.item import Item

pytestmark = pytest.mark.anyio


class Numeric:
    """A model that gives the test's values."""

    model = "numeric"
    version = "1"

    def __init__(self, given: Any) -> None:
        self.given = given

    def scores(self, items: Sequence[Item]) -> Any:
        return self.given


async def asked(given: Any, count: int) -> tuple[int, Any]:
    server = JudgeServer("reward_model", Numeric(given), batch_size=count, batch_wait_s=0.0, capacity=64)
    runner = web.AppRunner(server.app())
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        async with ClientSession(f"http://127.0.0.1:{port}") as http:
            answer = await http.post("/v1/scores", json={"items": [{"answer": "x"}] * count})
            return answer.status, await answer.json()
    finally:
        await runner.cleanup()


async def test_scores_of_numeric_libraries_are_numbers() -> None:
    status, body = await asked([np.float32(0.5), np.float64(0.25), np.array(1), True, None], 5)
    assert (status, body["scores"]) == (200, [0.5, 0.25, 1.0, 1.0, None])


async def test_an_array_of_scores_is_taken() -> None:
    assert (await asked(np.array([0.5, 1.5], dtype=np.float32), 2))[1]["scores"] == [0.5, 1.5]


async def test_what_is_no_finite_number_is_no_score_and_its_neighbours_have_theirs() -> None:
    status, body = await asked([0.5, math.nan, np.float32("inf"), "0.5", {1}, 10**400, 1.0], 7)
    assert (status, body["scores"]) == (200, [0.5, None, None, None, None, None, 1.0])
