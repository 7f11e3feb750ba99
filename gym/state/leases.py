"""Liveness: leases of workers on the server's clock, and a lock with an expiry for the dispatcher."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from gym.jsontypes import JsonObject
from gym.state.redis.store import LEAD, Store
from gym.state.redis.unreadable import read_object, read_or_none


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStatus:
    """A worker process with a lease. `info` is its last report."""

    worker: str
    lease_ends_in_s: float
    info: JsonObject

    @property
    def role(self) -> Literal["worker", "judge"]:
        """Return the role; a judge worker runs no rollouts but takes their conversations to judges."""
        return "judge" if self.info.get("role") == "judge" else "worker"

    @property
    def slots(self) -> int:
        """Return how many rollouts it runs at a time; 0 while it drains."""
        return 0 if self.info.get("draining") else self.count("concurrency")

    def count(self, name: str) -> int:
        """Return a number from its report, 0 if it is missing."""
        value = self.info.get(name, 0)
        return int(value) if isinstance(value, int | float) and math.isfinite(value) else 0


class Leases:
    """Reader of leases; workers renew theirs from a separate thread (`workers.process.lease`)."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def workers(self) -> list[WorkerStatus]:
        """Return every registered worker; expired ones have negative seconds."""
        keys = self._store.keys
        pipeline = self._store.redis.pipeline(transaction=False)
        pipeline.time()
        pipeline.zrange(keys.workers, 0, -1, withscores=True)
        pipeline.hgetall(keys.worker_info)
        (seconds, micros), leases, infos = await pipeline.execute()
        now = seconds * 1000 + micros // 1000
        return [
            WorkerStatus(
                worker=name.decode(errors="backslashreplace"),
                lease_ends_in_s=(ends - now) / 1000,
                info=_info(name, infos.get(name, b"{}")),
            )
            for name, ends in leases
        ]

    async def forget_worker(self, worker: str) -> None:
        """Remove a worker; if it is alive after all, it registers again as an empty one."""
        pipeline = self._store.redis.pipeline(transaction=False)
        pipeline.zrem(self._store.keys.workers, worker)
        pipeline.hdel(self._store.keys.worker_info, worker)
        await pipeline.execute()

    async def dispatcher(self) -> str | None:
        """Return the name of the leading dispatcher, `None` if there is none."""
        name = await self._store.redis.get(self._store.keys.dispatcher)
        return name.decode() if name else None

    async def lead(self, name: str, ttl_s: float) -> bool:
        """Become or stay the leading dispatcher."""
        return bool(await self._store.run(LEAD, [self._store.keys.dispatcher], [name, int(ttl_s * 1000)]))

    async def resign(self, name: str) -> None:
        """Let another dispatcher lead at once."""
        await self._store.run(LEAD, [self._store.keys.dispatcher], [name, 0])


def _info(name: bytes, text: bytes) -> JsonObject:
    """Return a worker's report; a worker whose report cannot be read gets no work."""
    return read_or_none("worker", name, read_object, text) or {}
