"""Checks that nothing is left in Redis, on disk and in the workers once every rollout has ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import httpx

from gym.config import broker_url
from gym.state.redis.store import Store
from gym.state.settings import RedisSettings
from workers.process.app import queue_lists, queue_name

IDLE_WITHIN_S = 30.0


@dataclass(frozen=True, slots=True)
class Stored:
    """Contents of Redis for a batch at the end: how many entries under each key, and when each result was recorded."""

    batch_id: str
    backlog: int
    later: int
    live: int
    staging: int
    done: int
    recorded_at: tuple[float, ...]


async def read_stored(redis_url: str, batch_ids: Sequence[str]) -> list[Stored]:
    """From Redis itself."""
    store = Store.connect(redis_url)
    try:
        found = []
        for batch_id in batch_ids:
            keys = store.keys.batch(batch_id)
            pipeline = store.redis.pipeline()
            pipeline.llen(keys.backlog)
            pipeline.zcard(keys.later)
            pipeline.hlen(keys.live)
            pipeline.hlen(keys.staging)
            pipeline.hlen(keys.done)
            pipeline.xrange(keys.log)
            backlog, later, live, staging, done, log = await pipeline.execute()
            # the id of an entry begins with the server's clock in ms
            recorded_at = tuple(int(entry_id.split(b"-")[0]) / 1000 for entry_id, _ in log)
            found.append(Stored(batch_id, backlog, later, live, staging, done, recorded_at))
        return found
    finally:
        await store.close()


def remains(stored: Sequence[Stored]) -> list[str]:
    """Return the entries that should be gone. Pure."""
    return [
        f"{one.batch_id} still has {count} in {name}"
        for one in stored
        for name, count in (
            ("backlog", one.backlog),
            ("later", one.later),
            ("live", one.live),
            ("staging", one.staging),
        )
        if count
    ] + [
        f"{one.batch_id} has {one.done} final states and {len(one.recorded_at)} results"
        for one in stored
        if one.done != len(one.recorded_at)
    ]


async def until_idle(farm_url: str, model_url: str, redis_url: str) -> list[str]:
    """Wait until no worker holds a slot, and no job, session or model call is open; return those still open."""
    give_up_at = time.monotonic() + IDLE_WITHIN_S
    broker = Store.connect(broker_url(RedisSettings(url=redis_url)))
    lists = queue_lists(queue_name("farm"), "farm.")
    try:
        async with httpx.AsyncClient(timeout=10) as http:
            while True:
                workers = (await http.get(f"{farm_url}/v1/workers")).raise_for_status().json()["items"]
                model = (await http.get(f"{model_url}/admin/stats")).raise_for_status().json()
                busy = [
                    f"an idle worker holds {worker.get('taken')} slots and runs {worker.get('running')}"
                    for worker in workers
                    if worker["alive"] and (worker.get("taken") or worker.get("running"))
                ]
                sessions = (await http.get(f"{farm_url}/v1/sessions")).raise_for_status().json()["items"]
                alive = {worker["worker"] for worker in workers if worker["alive"]}
                # records of sessions that died with their worker are kept for a minute
                busy += [f"session {one['session_id']} is open" for one in sessions if one["worker"] in alive]
                waiting = sum([await broker.redis.llen(name) for name in lists])
                busy += [f"{waiting} jobs wait in the broker"] if waiting else []
                busy += [f"{model['in_flight']} model calls are open"] if model["in_flight"] else []
                if not busy or time.monotonic() >= give_up_at:
                    return busy
                await asyncio.sleep(0.5)
    finally:
        await broker.close()


def leaked_files(temporary: Path, data_dir: Path, killed: Set[int]) -> list[str]:
    """Temporary files, and halves of trajectories (`NAME.PROCESS.part`); those of the killed go with their batch."""
    return [f"left: {path}" for path in temporary.rglob("*") if path.is_file()] + [
        f"half a file is left: {path}"
        for path in (data_dir / "blobs").rglob("*.part")
        if int(path.suffixes[-2].removeprefix(".")) not in killed
    ]
