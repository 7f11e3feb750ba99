"""A broker that holds what is no job: it is set aside with an alarm, and the same workers go on with the rest."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from api.local.local_farm import LocalFarm, local_farm
from gym.client import connect
from gym.config import broker_url
from gym.state.alarms import AlarmKind, Alarms
from gym.state.redis.store import Store
from gym.state.settings import RedisSettings
from workers.process.app import RUN_JOB, queue_lists, queue_name

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]
WITHIN_S = 120.0
ROW: dict[str, Any] = {"environment": "weather", "responses_create_params": {"input": "Oslo?"}}
JOB: dict[str, Any] = {"batch_id": "b", "environment": "e", "rollouts": ["b:0:0"], "attempts": [1]}


@pytest.fixture(scope="module")
def own_farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFarm]:
    folder: Path = tmp_path_factory.mktemp("garbage")
    settings = {"FARM_DISPATCHER_RESEND_AFTER_S": "2"}
    with local_farm(folder, options=["--workers", "1", "--concurrency", "8"], settings=settings) as started:
        yield started


def message(
    args: Any = (), kwargs: Any = None, headers: Any = None, body: str | None = None, **changes: Any
) -> dict[str, Any]:
    """A message as Celery sends it, with changes."""
    text = json.dumps([args, JOB if kwargs is None else kwargs, None])
    return {
        "body": base64.b64encode(text.encode()).decode() if body is None else body,
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"id": "x", "task": RUN_JOB, "rollouts": 1} if headers is None else headers,
        "properties": {
            "delivery_tag": "x",
            "body_encoding": "base64",
            "delivery_info": {"exchange": "", "routing_key": "q"},
        },
    } | changes


GARBAGE: tuple[str | bytes, ...] = (
    "garbage",
    b"\xff\xfe not UTF-8",
    b"\x80\x04\x95 a pickle",
    "",
    "7",
    "null",
    "[]",
    "{}",
    "[" * 100_000,
    *(
        json.dumps(each)
        for each in (
            message(properties={}),
            message(properties=7),
            message(headers={}),
            message(headers="text"),
            message(headers={"id": "x", "task": "celery.backend_cleanup", "rollouts": 1}),
            message(headers={"id": "x", "task": "somebody.elses", "rollouts": 1}),
            message(headers={"id": "x", "task": ["a"], "rollouts": 1}),
            message(headers={"id": 7, "task": RUN_JOB, "rollouts": 1}),
            message(headers={"id": "x", "task": RUN_JOB, "rollouts": "many"}),
            message(headers={"id": "x", "task": RUN_JOB, "rollouts": 1, "eta": "garbage"}),
            message(headers={"id": "x", "task": RUN_JOB, "rollouts": 1, "expires": 7}),
            message(headers={"id": "x", "task": RUN_JOB, "rollouts": 1, "timelimit": "soon"}),
            message(headers={"id": "x", "task": RUN_JOB, "rollouts": 1, "alone": True}),
            message(body="no base64!"),
            message(body=base64.b64encode(b"{truncated").decode()),
            message(body=base64.b64encode(b"7").decode()),
            message(**{"content-type": "application/x-python-serialize"}),
            message(**{"content-encoding": "no-such"}),
            message(args=[1, 2]),
            message(kwargs={}),
            message(kwargs=[]),
            message(kwargs=JOB | {"batch_id": 7}),
            message(kwargs=JOB | {"rollouts": "b:0:0"}),
            message(kwargs=JOB | {"rollouts": []}),
            message(kwargs=JOB | {"rollouts": ["c:0:0"]}),
            message(kwargs=JOB | {"rollouts": [7]}),
            message(kwargs=JOB | {"attempts": ["one"]}),
            message(kwargs=JOB | {"attempts": [True]}),
            message(kwargs=JOB | {"attempts": [1, 2]}),
            message(kwargs=JOB | {"probe": "no kind"}),
            message(kwargs=JOB | {"probe": 7}),
            message(kwargs=JOB | {"future": 1}),
        )
    ),
)


async def test_messages_that_are_no_jobs_are_set_aside_and_the_worker_goes_on(own_farm: LocalFarm) -> None:
    store = Store.connect(own_farm.redis_url)
    broker = Store.connect(broker_url(RedisSettings(url=own_farm.redis_url)))
    before = _workers(own_farm)
    assert before
    [_, usual] = queue_lists(queue_name("farm"), "farm.")
    async with connect(own_farm.url) as client, asyncio.timeout(WITHIN_S):
        for number, item in enumerate(GARBAGE):
            await broker.redis.lpush(usual, item)
            if number % 10 == 0:
                batch = await client.submit([ROW] * 4)
                assert [result.outcome async for result in batch.results()] == ["succeeded"] * 4
        while await broker.redis.llen(usual):  # noqa: ASYNC110  the worker has no event for it
            await asyncio.sleep(0.05)
        batch = await client.submit([ROW] * 20)
        assert [result.outcome async for result in batch.results()] == ["succeeded"] * 20
        kinds: set[str] = set()
        while AlarmKind.UNREADABLE_MESSAGE not in kinds:
            kinds = {str(alarm["kind"]) for alarm in (await Alarms(store).standing()).values()}
            await asyncio.sleep(0.05)
        idle = False
        while not idle:  # every slot came back
            idle = all(worker["taken"] == 0 for worker in await client.workers() if "taken" in worker)
            await asyncio.sleep(0.05)
    kept = await store.redis.lrange(store.keys.unreadable_messages, 0, -1)
    assert kept
    assert all({"queue", "reason", "message", "at"} <= json.loads(text).keys() for text in kept)
    assert _workers(own_farm) == before
    await store.close()
    await broker.close()


def _workers(farm: LocalFarm) -> set[int]:
    family = psutil.Process(farm.process.pid).children(recursive=True)
    return {process.pid for process in family if " worker" in " ".join(process.cmdline())}
