"""A trainer's change of a policy soon holds in every process: two workers and the proxy of one farm."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

import httpx
import pytest

from api.local.local_farm import LocalFarm
from gym.testing.model_server.request_log import RequestRecord
from gym.testing.model_server.server import ScriptedModelOptions, ScriptedModelServer

pytestmark = pytest.mark.anyio

ROW = {"responses_create_params": {"input": [{"role": "user", "content": "what's it like in Oslo?"}]}}
QUESTION = {"model": "moving", "messages": [{"role": "user", "content": "What is 4 + 3 ="}]}
WITHIN_S = 1.0


def slow() -> float:
    """Return how much slower than a quiet machine this one may be."""
    return max(1.0, 2 * os.getloadavg()[0] / (os.cpu_count() or 1))


async def put(http: httpx.AsyncClient, *urls: str, name: str = "moving") -> None:
    answer = await http.put(f"/v1/policies/{name}", json={"base_urls": urls, "model": "m"})
    assert answer.status_code == 200, answer.text


async def submit(http: httpx.AsyncClient, rows: int, *, policy: str = "moving", **options: Any) -> str:
    body = {"environment": "weather", "policy": policy, "rows": [ROW] * rows, **options}
    return str((await http.post("/v1/batches", json=body)).raise_for_status().json()["batch_id"])


async def ended(http: httpx.AsyncClient, batch_id: str) -> dict[str, int]:
    """The ledger when nothing is left to do."""
    async with asyncio.timeout(90):
        while True:
            ledger: dict[str, int] = (await http.get(f"/v1/batches/{batch_id}")).json()["ledger"]
            if not (ledger["queued"] or ledger["running"] or ledger["judging"]):
                return ledger
            await asyncio.sleep(0.1)


def calls(records: list[RequestRecord]) -> tuple[int, int]:
    """Count the calls of workers and of the proxy: those of rollouts have ids with a colon."""
    by_workers = sum(":" in record.headers.get("x-request-id", "") for record in records)
    return by_workers, len(records) - by_workers


async def test_all_processes_take_another_list_of_urls_while_calls_are_in_flight(farm: LocalFarm) -> None:
    options = ScriptedModelOptions(latency_s=0.4)
    async with (
        ScriptedModelServer(options) as old,
        ScriptedModelServer(options) as new,
        httpx.AsyncClient(base_url=farm.url, timeout=60) as http,
        httpx.AsyncClient(base_url=farm.proxy_url, timeout=60) as proxy,
    ):
        await put(http, old.url)
        asking = True

        async def ask() -> list[int]:
            """Calls of outside agents, one after the other."""
            found = []
            while asking:
                found.append((await proxy.post("/v1/chat/completions", json=QUESTION)).status_code)
            return found

        agents = [asyncio.create_task(ask()) for _ in range(4)]
        batch_id = await submit(http, 400)
        async with asyncio.timeout(60):
            while min(calls(old.records)) < 8:  # noqa: ASYNC110  the server has no event for it
                await asyncio.sleep(0.02)
        assert old.stats["in_flight"] > 0
        await put(http, new.url)
        replaced = time.time()
        ledger = await ended(http, batch_id)
        asking = False
        statuses = [status for agent in agents for status in await agent]
    assert ledger["succeeded"] == 400
    assert set(statuses) == {200}
    late = replaced + WITHIN_S * slow()
    assert [record for record in old.records if record.started > late] == []
    assert min(calls(new.records)) > 0
    assert old.stats["cancelled_by_client"] == 0  # calls in flight there ended there


async def test_a_policy_can_be_used_as_soon_as_it_is_registered(farm: LocalFarm) -> None:
    async with ScriptedModelServer() as model, httpx.AsyncClient(base_url=farm.url, timeout=60) as http:
        batches = []
        for number in range(6):
            await put(http, model.url, name=f"just-now-{number}")
            limits = {"max_attempts": 1}
            batches.append(await submit(http, 4, policy=f"just-now-{number}", limits=limits))
        assert [(await ended(http, batch_id))["succeeded"] for batch_id in batches] == [4] * 6
