"""A farm whose model servers err, hang and die: no rollout is lost, no call goes beyond its deadline."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from api.local.local_farm import LocalFarm
from gym.processes.process_tree import end_with_parent
from gym.testing.model_server.request_log import RequestRecord
from gym.testing.model_server.server import ScriptedModelOptions, ScriptedModelServer

pytestmark = pytest.mark.anyio

ROWS = [
    {"responses_create_params": {"input": [{"role": "user", "content": f"what's it like in {city}?"}]}}
    for city in ("Oslo", "Lima", "Nairobi", "Kyoto")
]


async def submit(http: httpx.AsyncClient, name: str, urls: list[str], rows: int, **options: Any) -> str:
    answer = await http.put(f"/v1/policies/{name}", json={"base_urls": urls, "model": "m"})
    assert answer.status_code == 200, answer.text
    body = {"environment": "weather", "policy": name, "rows": [ROWS[i % len(ROWS)] for i in range(rows)], **options}
    answer = await http.post("/v1/batches", json=body)
    assert answer.status_code == 201, answer.text
    batch_id: str = answer.json()["batch_id"]
    return batch_id


async def outcomes(http: httpx.AsyncClient, batch_id: str, *, within_s: float) -> Counter[tuple[str, float | None]]:
    found: list[dict[str, Any]] = []
    after = ""
    async with asyncio.timeout(within_s):
        while True:
            params = {"wait": "5", **({"after": after} if after else {})}
            page = (await http.get(f"/v1/batches/{batch_id}/results", params=params)).json()
            found += page["items"]
            after = page["next_after"]
            if page["done"]:
                return Counter((item["outcome"], item["reward"]) for item in found)


@asynccontextmanager
async def model_process() -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A model server that can be stopped as a whole, and its URL."""
    command = [sys.executable, "-m", "api.cli.main", "mock-model", "--port", "0", "--latency-s", "0.5"]
    started = await asyncio.create_subprocess_exec(
        *command, stdout=subprocess.PIPE, preexec_fn=end_with_parent(signal.SIGKILL)
    )
    try:
        assert started.stdout is not None
        line = await started.stdout.readline()
        yield started, line.decode().removeprefix("ready ").strip()
    finally:
        started.kill()
        await started.wait()


def slow() -> float:
    """Return how much slower than a quiet machine this one may be."""
    return max(1.0, 2 * os.getloadavg()[0] / (os.cpu_count() or 1))


def calls(server: ScriptedModelServer) -> list[RequestRecord]:
    """The calls that a server got, without the checks of its health."""
    return [record for record in server.records if record.headers.get("x-request-id") != "farm-health-check"]


async def test_a_third_of_all_calls_answered_500_or_429_loses_no_rollout(farm: LocalFarm) -> None:
    options = ScriptedModelOptions(error_rate=0.15, rate_limit_rate=0.15, retry_after_s=0.1, seed=3)
    async with ScriptedModelServer(options) as model, httpx.AsyncClient(base_url=farm.url, timeout=60) as http:
        batch_id = await submit(http, "erring", [model.url], 200)
        assert await outcomes(http, batch_id, within_s=90) == {("succeeded", 1.0): 200}
        assert model.stats["requests"] > 440  # 400 answers are needed, so it did err


async def test_load_moves_away_from_an_endpoint_that_dies_and_no_rollout_is_lost(farm: LocalFarm) -> None:
    async with (
        ScriptedModelServer(ScriptedModelOptions(latency_s=0.05)) as first,
        ScriptedModelServer(ScriptedModelOptions(latency_s=0.05)) as second,
        httpx.AsyncClient(base_url=farm.url, timeout=60) as http,
    ):
        dying = ScriptedModelServer(ScriptedModelOptions(latency_s=0.05))
        async with dying:
            batch_id = await submit(http, "dying", [first.url, dying.url, second.url], 600)
            async with asyncio.timeout(30):
                while dying.stats["requests"] < 20:  # noqa: ASYNC110  the server has no event for it
                    await asyncio.sleep(0.01)
        assert await outcomes(http, batch_id, within_s=90) == {("succeeded", 1.0): 600}


async def test_a_model_that_never_answers_is_cut_at_the_rollouts_deadline(farm: LocalFarm) -> None:
    async with (
        ScriptedModelServer(ScriptedModelOptions(hang_rate=1.0)) as model,
        httpx.AsyncClient(base_url=farm.url, timeout=60) as http,
    ):
        batch_id = await submit(http, "hanging", [model.url], 8, limits={"rollout_timeout_s": 2, "max_attempts": 1})
        assert await outcomes(http, batch_id, within_s=20) == {("failed", None): 8}
        assert model.records
        assert all(record.ended - record.started < 2 + 2 * slow() for record in model.records if record.ended)
        async with asyncio.timeout(5):
            while model.stats["in_flight"]:  # noqa: ASYNC110  the server has no event for it
                await asyncio.sleep(0.02)


async def test_load_leaves_endpoints_that_hang_and_no_rollout_is_lost(farm: LocalFarm) -> None:
    """One is well by its own account and answers no call, the other is stopped as a whole, with calls in flight."""
    options = ScriptedModelOptions(latency_s=0.5)
    async with (
        ScriptedModelServer(options) as first,
        ScriptedModelServer(options) as second,
        ScriptedModelServer(options) as hanging,
        model_process() as (stopped, stopped_url),
        httpx.AsyncClient(base_url=farm.url, timeout=60) as http,
    ):
        batch_id = await submit(http, "hanging-two", [first.url, hanging.url, stopped_url, second.url], 400)
        async with asyncio.timeout(60):
            while hanging.stats["requests"] < 30:  # noqa: ASYNC110  the server has no event for it
                await asyncio.sleep(0.01)
        hanging.behave(hang_rate=1.0)
        stopped.send_signal(signal.SIGSTOP)
        began = time.time()
        assert await outcomes(http, batch_id, within_s=100) == {("succeeded", 1.0): 400}
        assert max(record.started for record in calls(hanging)) < began + 5 * slow()
        assert not [record for record in calls(hanging) if record.ended is None]


async def test_an_endpoint_that_comes_back_gets_load_again(farm: LocalFarm) -> None:
    steady = ScriptedModelServer(ScriptedModelOptions(latency_s=0.5))
    gone = ScriptedModelServer(ScriptedModelOptions(latency_s=0.5))
    async with steady, httpx.AsyncClient(base_url=farm.url, timeout=60) as http:
        async with gone:
            batch_id = await submit(http, "coming-back", [steady.url, gone.url], 400)
            async with asyncio.timeout(60):
                while gone.stats["requests"] < 30:  # noqa: ASYNC110  the server has no event for it
                    await asyncio.sleep(0.01)
        before = steady.stats["requests"]
        async with asyncio.timeout(60):
            while steady.stats["requests"] < before + 60:  # noqa: ASYNC110  the server has no event for it
                await asyncio.sleep(0.01)
        async with ScriptedModelServer(ScriptedModelOptions(latency_s=0.5), port=gone.port) as back:
            began = time.time()
            async with asyncio.timeout(30):
                while not calls(back):  # noqa: ASYNC110  the server has no event for it
                    await asyncio.sleep(0.01)
            assert time.time() - began < 5 * slow()
            assert await outcomes(http, batch_id, within_s=100) == {("succeeded", 1.0): 400}
