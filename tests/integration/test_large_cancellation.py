"""A run with very many queued rollouts is cancelled while another run goes on, on a whole farm."""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from redis.asyncio import Redis

from api.local.local_farm import LocalFarm, local_farm
from gym.state.redis import store
from gym.state.redis.store import Script
from gym.task import MAX_SAMPLES

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(900)]
ROW = {"responses_create_params": {"input": [{"role": "user", "content": "what's it like in Oslo?"}]}}
SLOW_SCRIPT_MS = 20
OWN_MS = 10
"""The rest of a slow command's time it waited for a processor: other processes of the machine had it."""

AT_ONCE = 8


@pytest.fixture(scope="module")
def quick_farm() -> Iterator[LocalFarm]:
    """A farm whose model answers at once, so that only the farm takes time."""
    with tempfile.TemporaryDirectory(prefix="large-") as folder:
        options = ["--workers", "1", "--concurrency", "32", "--no-flower"]
        with local_farm(Path(folder), options=options, model_options=["--latency-s", "0.05"]) as farm:
            yield farm


@dataclass(frozen=True, slots=True)
class Seen:
    """Latencies of the other run in seconds, answers of /readyz, and how long the cancellation took."""

    latencies: list[float]
    ready: list[int]
    took_s: float = 0.0

    @property
    def p95_s(self) -> float:
        return statistics.quantiles(self.latencies, n=20)[-1]


Slow = tuple[float, str]


@dataclass(frozen=True, slots=True)
class RedisTime:
    """Commands above `SLOW_SCRIPT_MS`, a script's mean in ms, and seconds for which Redis waited for a processor."""

    slow: list[Slow]
    mean_ms: float
    waited_s: float

    @property
    def unexplained_s(self) -> float:
        """Return by how much the slow commands exceeded their limit, without the time that Redis waited."""
        return sum(ms - OWN_MS for ms, _ in self.slow) / 1000 - self.waited_s


async def waited_s(redis: Redis) -> float:
    """Seconds that Redis's main thread was ready to run and did not, since it started."""
    pid = (await redis.info("server"))["process_id"]
    return int((await asyncio.to_thread(Path(f"/proc/{pid}/schedstat").read_text)).split()[1]) / 1e9


SCRIPTS = {script.sha: name for name, script in vars(store).items() if isinstance(script, Script)}


def name_of(command: bytes) -> str:
    """The script of a command, or the command."""
    words = command.decode(errors="replace").split()
    return SCRIPTS.get(words[1], words[0]) if len(words) > 1 else words[0]


async def submit_large(http: httpx.AsyncClient, wide_rows: int, small_rows: int) -> tuple[str, int]:
    """Few rows of as many samples as a row may have, and many rows of ten."""

    async def rows() -> AsyncIterator[bytes]:
        wide = json.dumps({**ROW, "num_samples": MAX_SAMPLES}).encode() + b"\n"
        small = json.dumps({**ROW, "num_samples": 10}).encode() + b"\n"
        yield wide * wide_rows
        for first in range(0, small_rows, 1000):
            yield small * min(1000, small_rows - first)

    body = {"environment": "weather", "run": "large", "sealed": False, "rows": []}
    batch_id = (await http.post("/v1/batches", json=body)).raise_for_status().json()["batch_id"]
    headers = {"content-type": "application/x-ndjson"}
    added = (await http.post(f"/v1/batches/{batch_id}/rows", content=rows(), headers=headers)).raise_for_status().json()
    return str(batch_id), int(added["submitted"])


async def roll(http: httpx.AsyncClient) -> float:
    """Seconds from the submission of a few rollouts of the other run to the last of their results."""
    began = time.monotonic()
    body = {"environment": "weather", "run": "other", "rows": [ROW], "num_samples": AT_ONCE}
    batch_id = (await http.post("/v1/batches", json=body)).raise_for_status().json()["batch_id"]
    after, seen = None, 0
    while seen < AT_ONCE:
        query = {"wait": "10", **({"after": after} if after else {})}
        page = (await http.get(f"/v1/batches/{batch_id}/results", params=query)).raise_for_status().json()
        after, seen = page["next_after"], seen + len(page["items"])
        assert all(item["outcome"] == "succeeded" for item in page["items"])
    return time.monotonic() - began


async def other_run(http: httpx.AsyncClient, stop: asyncio.Event, seen: Seen) -> None:
    while not stop.is_set():
        seen.latencies.append(await roll(http))


async def watch_readiness(http: httpx.AsyncClient, stop: asyncio.Event, seen: Seen) -> None:
    while not stop.is_set():
        seen.ready.append((await http.get("/readyz")).status_code)
        await asyncio.sleep(0.1)


async def until_cancelled(http: httpx.AsyncClient, batch_id: str, submitted: int) -> None:
    """The ledger balances at each look, and only grows towards its end."""
    cancelled = 0
    while True:
        batch = (await http.get(f"/v1/batches/{batch_id}")).raise_for_status().json()
        ledger = batch["ledger"]
        assert ledger["submitted"] == submitted == sum(ledger.values()) - submitted
        assert ledger["cancelled"] >= cancelled
        cancelled = ledger["cancelled"]
        if batch["ended_at"]:
            return
        await asyncio.sleep(0.2)


async def cancel_beside_another_run(http: httpx.AsyncClient, batch_id: str, submitted: int) -> Seen:
    stop, seen = asyncio.Event(), Seen([], [])
    async with asyncio.TaskGroup() as group:
        group.create_task(watch_readiness(http, stop, seen))
        group.create_task(other_run(http, stop, seen))
        began = time.monotonic()
        answers = await asyncio.gather(*(http.delete(f"/v1/batches/{batch_id}") for _ in range(5)))
        answered_s = time.monotonic() - began
        assert {answer.status_code for answer in answers} == {202}
        assert sum(answer.json()["cancelled"] for answer in answers) < submitted / 100
        assert answered_s < 5.0
        await until_cancelled(http, batch_id, submitted)
        took_s = time.monotonic() - began
        while len(seen.latencies) < 20:  # noqa: ASYNC110  another task fills it
            await asyncio.sleep(0.05)
        stop.set()
    return Seen(seen.latencies, seen.ready, took_s)


async def cancel_a_large_run(farm: LocalFarm, wide_rows: int, small_rows: int) -> tuple[Seen, Seen, RedisTime]:
    """Cancel a large run; return measurements of the other run before and during it, and of Redis."""
    async with (
        httpx.AsyncClient(base_url=farm.url, timeout=300) as http,
        Redis.from_url(farm.redis_url) as redis,
    ):
        before = Seen([await roll(http) for _ in range(21)], [])
        batch_id, submitted = await submit_large(http, wide_rows, small_rows)
        assert submitted == wide_rows * MAX_SAMPLES + small_rows * 10
        await redis.config_set("slowlog-log-slower-than", SLOW_SCRIPT_MS * 1000)
        await redis.config_set("slowlog-max-len", 10_000)
        await redis.slowlog_reset()
        await redis.config_resetstat()
        waited_before_s = await waited_s(redis)
        during = await cancel_beside_another_run(http, batch_id, submitted)
        slow = [(entry["duration"] / 1000, name_of(entry["command"])) for entry in await redis.slowlog_get(10_000)]
        stats = (await redis.info("commandstats"))["cmdstat_evalsha"]
        waited = await waited_s(redis) - waited_before_s
        return before, during, RedisTime(slow, stats["usec_per_call"] / 1000, waited)


def check(before: Seen, during: Seen, redis: RedisTime) -> None:
    said = (
        f"cancelled in {during.took_s:.1f} s; p95 of the other run {before.p95_s:.3f} s before, {during.p95_s:.3f} s "
        f"during, {len(during.latencies)} times; {len(during.ready)} looks at /readyz; {len(redis.slow)} commands "
        f"above {SLOW_SCRIPT_MS} ms {sorted(redis.slow)[-5:]}, Redis waited {redis.waited_s:.1f} s for a processor; "
        f"a script takes {redis.mean_ms:.2f} ms on average"
    )
    sys.stdout.write(f"{said}\n")
    assert set(during.ready) == {200}, said
    assert redis.unexplained_s <= 0.1, said
    assert redis.mean_ms <= SLOW_SCRIPT_MS / 2, said
    assert during.p95_s <= 2 * before.p95_s + 0.5, said


async def test_200_000_queued_rollouts_are_cancelled_and_another_run_notices_nothing(quick_farm: LocalFarm) -> None:
    check(*await cancel_a_large_run(quick_farm, wide_rows=40, small_rows=3616))


@pytest.mark.slow
async def test_two_million_queued_rollouts_are_cancelled_and_another_run_notices_nothing(quick_farm: LocalFarm) -> None:
    check(*await cancel_a_large_run(quick_farm, wide_rows=400, small_rows=36_160))
