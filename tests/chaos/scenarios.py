"""Troubles that are no kill: a flushed broker, a worker that stands still for a while, a rolling restart, a full disk.

Each is a `Trouble` of `tests.chaos.run`, so everything that is checked of a run of kills is checked here too. A Redis
that loses its last writes is one of `tests.chaos.lost_writes`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from redis.asyncio import Redis

from gym.client import connect
from gym.config import broker_url
from gym.state.redis.keys import Keys
from gym.state.settings import RedisSettings
from tests.chaos.observations import Outage
from tests.chaos.processes import ChaosFarm, FarmOptions
from tests.chaos.redis_servers import Forgetful, Promotion, PutBack
from tests.chaos.run import RunOptions, Say, Trouble
from tests.chaos.schedule import Kind
from tests.chaos.verdict import READY_WITHIN_S
from tests.chaos.watch import Watch
from workers.process.app import queue_lists, queue_name

POLL_S = 0.1
# in the order of a careful operator: processes that accept work first, Redis last
ROLLING: tuple[Kind, ...] = ("api", "proxy", "flower", "dispatcher", "worker", "redis")


def flush_broker(times: int) -> Trouble:
    """FLUSHDB of the broker's database as soon as jobs wait in it, so many times; the truth lies elsewhere."""

    async def trouble(farm: ChaosFarm, watch: Watch, options: RunOptions, say: Say) -> None:
        for number in range(times):
            await _until(lambda number=number: options.progress(watch) > number / (times + 1))  # type: ignore[misc]
            async with Redis.from_url(broker_url(RedisSettings(url=farm.redis_url()))) as broker:
                while not (waiting := await _jobs(broker)):  # noqa: ASYNC110  as `_until`
                    await asyncio.sleep(0.005)
                await broker.flushdb()
            say(f"  {options.progress(watch):4.0%} done, flushed the broker with {waiting} jobs in it")

    return trouble


def stop_a_worker(seconds: float) -> Trouble:
    """SIGSTOP of a worker when its second wave of rollouts has just begun, SIGCONT when others have taken them over."""

    async def trouble(farm: ChaosFarm, watch: Watch, options: RunOptions, say: Say) -> None:
        await _until(lambda: options.progress(watch) > 0.1)
        pid = farm.pids("worker")[0]
        began = time.time()
        os.kill(pid, signal.SIGSTOP)
        say(f"  {options.progress(watch):4.0%} done, stopped worker {pid}")
        try:
            await asyncio.sleep(seconds)
        finally:
            os.kill(pid, signal.SIGCONT)
            farm.outages.append(Outage(began, time.time()))
            farm.returned.append(time.time())
        say(f"  {options.progress(watch):4.0%} done, worker {pid} goes on")

    return trouble


def spoil(times: int) -> Trouble:
    """Put what cannot be read among the active batches, the breakers and the broker's messages."""

    async def trouble(farm: ChaosFarm, watch: Watch, options: RunOptions, say: Say) -> None:
        url = farm.redis_url() or ""
        for number in range(times):
            await _until(lambda number=number: options.progress(watch) >= number / (times + 1))  # type: ignore[misc]
            name = f"unreadable-{number}"
            keys = Keys("farm")
            async with Redis.from_url(url) as redis, Redis.from_url(broker_url(RedisSettings(url=url))) as broker:
                await redis.hset(keys.batch(name).meta, mapping={"spec": '{"schema":99}', "run": "x", "queued": "many"})
                await redis.zadd(keys.active, {name: time.time() * 1000, b"\xff\xfe": 1})
                await redis.hset(keys.breakers, name, "garbage")
                for list_name in queue_lists(queue_name("farm"), "farm."):
                    await broker.lpush(list_name, "garbage", b"\xff\xfe", "{}")
            say(f"  {options.progress(watch):4.0%} done, spoiled records of the farm")

    return trouble


async def roll(farm: ChaosFarm, watch: Watch, options: RunOptions, say: Say) -> None:
    """SIGTERM every process of the farm, one after another, each when the one before it is back."""
    for kind in ROLLING:
        await _until(lambda: options.progress(watch) > 0.1)
        for pid in farm.pids(kind):
            others = len(farm.pids(kind)) - 1
            began = time.time()
            os.kill(pid, signal.SIGTERM)
            await _until(lambda pid=pid, kind=kind, others=others: _replaced(farm, kind, pid, others))  # type: ignore[misc]
            if kind == "redis":
                farm.outages.append(Outage(began, time.time()))
            await watch.until_ready(READY_WITHIN_S)
            say(f"  {options.progress(watch):4.0%} done, {kind} {pid} was replaced in {time.time() - began:.1f} s")


def end_the_api(times: int) -> Trouble:
    """SIGTERM of the api, so many times, while trainers wait for results; none of them may notice."""

    async def trouble(farm: ChaosFarm, watch: Watch, options: RunOptions, say: Say) -> None:
        async with asyncio.TaskGroup() as group:
            for batch_id in watch.batch_ids:
                for how in ("pages", "stream"):
                    group.create_task(_wait_for_results(farm.url, batch_id, how, watch))
            for number in range(times):
                await _until(lambda number=number: options.progress(watch) > (number + 1) / (times + 2))  # type: ignore[misc]
                [pid] = farm.pids("api")
                began = time.time()
                os.kill(pid, signal.SIGTERM)
                await _until(lambda pid=pid: _replaced(farm, "api", pid, 0))  # type: ignore[misc]
                await watch.until_ready(READY_WITHIN_S)
                took_s = time.time() - began
                say(
                    f"  {options.progress(watch):4.0%} done, api {pid} was replaced under its readers in {took_s:.1f} s"
                )

    return trouble


def fill_disk(seconds: float) -> Trouble:
    """A disk on which no trajectory can be written for so long, while rollouts end."""

    async def trouble(farm: ChaosFarm, watch: Watch, options: RunOptions, say: Say) -> None:
        await _until(lambda: options.progress(watch) > 0.1)
        say(f"  {options.progress(watch):4.0%} done, {await asyncio.to_thread(farm.disk.fill)}")
        try:
            await asyncio.sleep(seconds)
        finally:
            farm.disk.free()
        say(f"  {options.progress(watch):4.0%} done, it has room again")

    return trouble


async def _wait_for_results(url: str, batch_id: str, how: str, watch: Watch) -> None:
    """Follow a batch as the documentation says, with no patience beside the client's own. Raises FarmError."""
    await _until(lambda: batch_id in watch.latest)
    seen: set[str] = set()
    async with connect(url) as farm:
        results = farm.batch(batch_id).results()
        while not results.done:
            page = await results.page(wait_s=30.0) if how == "pages" else [result async for result in results]
            for result in page:
                if result.rollout_id in seen:
                    raise RuntimeError(f"{result.rollout_id} came twice to a reader that waited ({how})")
                seen.add(result.rollout_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A trouble with the farm and the work for it. `most_attempts` limits the attempts of a rollout."""

    name: str
    options: RunOptions
    trouble: Trouble
    most_attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LostWrites:
    """A Redis that loses the writes of its last `loses_s` seconds, and the work for it."""

    name: str
    options: RunOptions
    forgetful: Forgetful
    most_attempts: int
    loses_s: float = 2.0


SCENARIOS = (
    Scenario(
        name="broker flushed 5 times",
        options=RunOptions(seed=101, rollouts=1000),
        trouble=flush_broker(5),
        most_attempts=1,
    ),
    Scenario(
        name="worker stopped for 30 s",
        options=RunOptions(seed=102, rollouts=600, least_turns=6, farm=FarmOptions(model_latency_s=3.0)),
        trouble=stop_a_worker(30.0),
        most_attempts=2,
    ),
    Scenario(
        name="records spoiled 5 times",
        options=RunOptions(seed=104, rollouts=1000),
        trouble=spoil(5),
        most_attempts=1,
    ),
    Scenario(
        name="rolling restart",
        options=RunOptions(
            seed=103,
            rollouts=1000,
            farm=FarmOptions(model_latency_s=1.0),
            settings={"FARM_WORKER_DRAIN_S": "1"},  # too short for running rollouts, which are handed back
        ),
        trouble=roll,
        most_attempts=1,
    ),
    Scenario(
        name="api ended 5 times under waiting trainers",
        options=RunOptions(seed=104, rollouts=1000, farm=FarmOptions(model_latency_s=1.0)),
        trouble=end_the_api(5),
        most_attempts=1,
    ),
    Scenario(
        name="disk full for 30 s",
        options=RunOptions(
            seed=107,
            rollouts=1000,
            farm=FarmOptions(model_latency_s=0.5, small_disk=True),
            settings={"FARM_RESULTS_INLINE_BYTES": "256"},
        ),
        trouble=fill_disk(30.0),
        most_attempts=3,
    ),
)
"""As `make chaos` runs them."""

LOST_WRITES = (
    LostWrites(
        name="Redis put back by two seconds",
        options=RunOptions(seed=105, rollouts=800, least_turns=4, farm=FarmOptions(model_latency_s=0.4)),
        forgetful=PutBack,
        most_attempts=2,
    ),
    LostWrites(
        name="replica promoted without the last two seconds",
        options=RunOptions(seed=106, rollouts=800, least_turns=4, farm=FarmOptions(model_latency_s=0.4)),
        forgetful=Promotion,
        most_attempts=2,
    ),
)
"""The same, of a Redis that forgets."""


def _replaced(farm: ChaosFarm, kind: Kind, pid: int, others: int) -> bool:
    pids = farm.pids(kind)
    return pid not in pids and len(pids) > others


async def _until(condition: Callable[[], bool]) -> None:
    """The run that this is part of has a bound."""
    while not condition():  # noqa: ASYNC110  other processes have no event for it
        await asyncio.sleep(POLL_S)


async def _jobs(broker: Redis) -> int:
    """Jobs that wait in Celery's queue."""
    return sum([int(await broker.llen(name)) for name in queue_lists(queue_name("farm"), "farm.")])
