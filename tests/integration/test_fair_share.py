"""A small run beside a large one that has filled all slots, on a whole farm."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest
from redis import Redis

from api.local.local_farm import LocalFarm
from gym.config import Settings, broker_url
from gym.testing.model_server.server import ScriptedModelOptions, ScriptedModelServer
from workers.dispatch.publisher import Job, Publisher
from workers.process.app import queue_lists, queue_name

SLOTS = 128
ROW = {"responses_create_params": {"input": [{"role": "user", "content": "what's it like in Oslo?"}]}}


def job(batch_id: str, *, urgent: bool = False) -> Job:
    return Job(batch_id=batch_id, environment="weather", members=[("0:0", 1)], urgent=urgent)


def test_urgent_jobs_pass_those_that_wait_and_the_oldest_is_looked_for_among_all(redis_url: str) -> None:
    settings = Settings(redis={"url": redis_url})
    publisher = Publisher(settings)
    try:
        assert publisher.oldest_waiting_ms() is None
        assert publisher.send([job("usual-1"), job("usual-2")], 1000)
        assert publisher.send([job("urgent", urgent=True)], 2000)
        assert publisher.oldest_waiting_ms() == 1000
        lists = queue_lists(queue_name(settings.redis.prefix), f"{settings.redis.prefix}.")
        with Redis.from_url(broker_url(settings.redis)) as broker:
            order = [broker.brpop(lists, timeout=5) for _ in range(3)]
        said = [b"usual-1", b"usual-2", b"urgent"]
        assert [next(name for name in said if name in taken[1]) for taken in order] == [said[2], said[0], said[1]]
    finally:
        publisher.close()


async def submit(http: httpx.AsyncClient, run: str, rollouts: int) -> str:
    body = {"environment": "weather", "run": run, "policy": "slow", "rows": [ROW], "num_samples": rollouts}
    answer = await http.post("/v1/batches", json=body)
    assert answer.status_code == 201, answer.text
    batch_id: str = answer.json()["batch_id"]
    return batch_id


async def counts(http: httpx.AsyncClient, batch_id: str) -> dict[str, Any]:
    batch = (await http.get(f"/v1/batches/{batch_id}")).raise_for_status().json()
    queues = (await http.get("/v1/queues")).raise_for_status().json()["items"]
    dispatched = next((each["dispatched"] for each in queues if each["batch_id"] == batch_id), 0)
    return {**batch["ledger"], "dispatched": dispatched}


async def results(http: httpx.AsyncClient, batch_id: str) -> list[dict[str, Any]]:
    """The first thousand there are."""
    answer = await http.get(f"/v1/batches/{batch_id}/results", params={"limit": "1000"})
    items: list[dict[str, Any]] = answer.raise_for_status().json()["items"]
    return items


def started_at(result: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(result["finished_at"]) - timedelta(seconds=result["timing"]["total_s"])


@pytest.mark.anyio
async def test_a_small_run_does_not_wait_for_what_a_large_one_has_in_celery(farm: LocalFarm) -> None:
    async with (
        ScriptedModelServer(ScriptedModelOptions(latency_s=1.5)) as model,
        httpx.AsyncClient(base_url=farm.url, timeout=60) as http,
        asyncio.timeout(120),
    ):
        policy = {"base_urls": [f"{model.url}/v1"], "model": "m"}
        (await http.put("/v1/policies/slow", json=policy)).raise_for_status()
        large = await submit(http, "large", 6 * SLOTS)
        while (found := await counts(http, large))["running"] < SLOTS or found["dispatched"] < SLOTS:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        small = await submit(http, "small", 8)
        while (await counts(http, small))["succeeded"] < 8:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        while (await counts(http, large))["succeeded"] < 2 * SLOTS:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        started = max(map(started_at, await results(http, small)))
        before = sum(started_at(each) < started for each in await results(http, large))
        await http.delete(f"/v1/batches/{large}")
    # it gets the first slots that are free; behind what was in Celery it would get those that the second wave leaves
    assert before < 1.5 * SLOTS
