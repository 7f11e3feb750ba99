"""Retention of ended batches: their size, and their removal.

Invariant: the script that removes anything of a batch checks that it has ended. Files are the caller's; they are
deleted after the pointers to them. Work that a crash leaves undone stays in `kept` or `stored` and is found there
again.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from gym.state.ledger.batches import everything, keep_for
from gym.state.ledger.ends import fold, forget
from gym.state.redis.store import DROP, REMOVE, Store
from gym.state.redis.unreadable import read_or_none

KEYS_AT_ONCE = 500
REMOVED_WITHIN_S = 3600.0
"""After this a batch that was not removed expires, which blocks Redis for a time that grows with its size."""


class DropReason(StrEnum):
    """Reason why trajectories were dropped before their batch."""

    ACKNOWLEDGED = "acknowledged"
    SIZE = "size"


@dataclass(frozen=True, slots=True)
class EndedBatch:
    """An ended batch with trajectories.

    `acknowledged_at` is the time since when every consumer has acknowledged all of it.
    """

    batch_id: str
    size_bytes: int
    ended_at: int
    acknowledged_at: int | None


class EndedBatches:
    """The dispatcher's operations on ended batches."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def retire(self, batch_id: str, *, created_at: int, keep_s: float) -> None:
        """Move a batch that has ended out of the active ones; its keys expire if nothing removes it."""
        redis, keys = self._store.redis, self._store.keys
        ended_at, size_bytes = await redis.hmget(keys.batch(batch_id).meta, ["ended_at", "stored_bytes"])
        if ended_at is None:
            return
        await fold(self._store, batch_id)
        # first, so that it is in one of the two at any moment
        await self._store.insist(keys.kept, "ZADD", int(ended_at), batch_id)
        if int(size_bytes or 0) > 0:
            await self._store.insist(keys.stored, "HSET", batch_id, size_bytes)
        await redis.zrem(keys.active, batch_id)
        if await redis.hexists(keys.batch(batch_id).meta, "ended_at"):
            await keep_for(self._store, batch_id, keep_s + REMOVED_WITHIN_S)
        else:
            await self._store.insist(keys.active, "ZADD", created_at, batch_id)  # it was queued again in between

    async def over(self, before_ms: int, most: int) -> list[str]:
        """Return batches that ended before a time, oldest first."""
        names = await self._store.redis.zrangebyscore(self._store.keys.kept, "-inf", before_ms, start=0, num=most)
        return [name.decode(errors="backslashreplace") for name in names]

    async def with_trajectories(self) -> list[EndedBatch]:
        """Return the ended batches that have trajectories, oldest first; those that run again are taken out."""
        redis, keys = self._store.redis, self._store.keys
        sizes = {}
        for name, size in (await redis.hgetall(keys.stored)).items():
            each = read_or_none("size of batch", name, _sized, name, size)
            if each is not None:
                sizes[each[0]] = each[1]
        found = []
        names = list(sizes)
        for first in range(0, len(names), 1000):
            part = names[first : first + 1000]
            pipeline = redis.pipeline(transaction=False)
            for name in part:
                pipeline.hget(keys.batch(name).meta, "ended_at")
                pipeline.hvals(keys.batch(name).feeds)
            answers = await pipeline.execute(raise_on_error=False)
            for name, ended_at, feeds in zip(part, answers[::2], answers[1::2], strict=True):
                if ended_at is None:
                    await redis.hdel(keys.stored, name)
                    continue
                batch = read_or_none("batch", name, _ended, name, sizes[name], ended_at, feeds)
                if batch is not None:
                    found.append(batch)
        return sorted(found, key=lambda batch: batch.ended_at)

    async def live_bytes(self) -> int:
        """Return the size of the trajectories of batches that have not ended."""
        redis, keys = self._store.redis, self._store.keys
        pipeline = redis.pipeline(transaction=False)
        for name in await redis.zrange(keys.active, 0, -1):
            pipeline.hget(keys.batch(name.decode(errors="backslashreplace")).meta, "stored_bytes")
        sizes = await pipeline.execute(raise_on_error=False)
        return sum(read_or_none("size of batch", "active", int, size or 0) or 0 for size in sizes)

    async def drop(self, batch_id: str, reason: DropReason) -> bool:
        """Drop a batch's trajectories, but not its records; return False if it runs again."""
        return bool(await self._store.run(DROP, self._store.keys.batch(batch_id).scripted(), [reason]))

    async def dropped(self, batch_id: str) -> None:
        """Note that the dropped files are deleted."""
        await self._store.redis.hdel(self._store.keys.stored, batch_id)

    async def remove(self, batch_id: str, before_ms: int) -> bool:
        """Remove a batch that ended before a time; return False if it runs again, or has ended again since."""
        redis, keys = self._store.redis, self._store.keys
        scripted = keys.batch(batch_id).scripted()
        await fold(self._store, batch_id)  # it may have run again and ended since
        others = [key for key in await everything(self._store, batch_id) if key not in scripted]
        while len(others) > KEYS_AT_ONCE:  # those of many consumers
            part, others = others[:KEYS_AT_ONCE], others[KEYS_AT_ONCE:]
            await self._store.run(REMOVE, [*scripted, *part], [before_ms, len(scripted) + 1])
        if await self._store.run(REMOVE, [*scripted, *others], [before_ms, 1]):
            return True
        if not await redis.hexists(keys.batch(batch_id).meta, "ended_at"):
            await self.removed(batch_id)  # it will be entered again
        return False

    async def removed(self, batch_id: str) -> None:
        """Note that the files of a removed batch are deleted."""
        keys = self._store.keys
        pipeline = self._store.redis.pipeline(transaction=False)
        pipeline.zrem(keys.kept, batch_id)
        pipeline.zrem(keys.batches, batch_id)
        pipeline.hdel(keys.stored, batch_id)
        await pipeline.execute()
        await forget(self._store, batch_id)


def _sized(name: bytes, size: bytes) -> tuple[str, int]:
    return name.decode(), int(size)


def _ended(name: str, size_bytes: int, ended_at: bytes, feeds: list[bytes]) -> EndedBatch:
    return EndedBatch(name, size_bytes, int(ended_at), _all_since(int(ended_at), feeds))


def _all_since(ended_at: int, feeds: list[bytes]) -> int | None:
    """Return since when all consumers have acknowledged all; `None` if one has not, or there is none."""
    since = [int(moment or 0) for moment in feeds]
    return max(since) if since and min(since) >= ended_at else None
