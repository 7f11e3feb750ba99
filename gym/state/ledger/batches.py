"""Batches: status, lists, sealing, cancellation, requeueing.

Invariant: the ledger's counters change in the same script as the states that they count. Submission of rows is in
`gym.state.ledger.submission`.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from redis.exceptions import RedisError

from gym.errors import Conflict, Invalid, NotFound
from gym.ids import GroupRef, RolloutRef
from gym.jsontypes import JsonObject
from gym.rollout import Ledger
from gym.state.batch_spec import read_options, read_spec
from gym.state.ledger.breakers import (
    Breaker,
    BreakerKind,
    ParkedCounts,
    open_names,
    parked_in,
    policy_key,
    read_breakers,
)
from gym.state.ledger.cancellation import Cancellation, StopCause, cancel, read_stop
from gym.state.ledger.judging import waiting_of
from gym.state.redis.store import REQUEUE, SEAL, Store, insisting
from gym.state.redis.unreadable import DECODE_ERRORS, concerns_redis, printable, read_or_none, reason

REQUEUE_CHUNK = 100
PAGE_BYTES = 4 * 2**20  # stored size of the batches of one page
BatchState = Literal["open", "running", "done", "cancelled", "expired", "unreadable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSnapshot:
    """State of a batch at one moment; times in ms of the server's clock."""

    batch_id: str
    run: str
    state: BatchState
    sealed: bool
    spec: JsonObject
    ledger: Ledger
    created_at: int
    ended_at: int | None
    fenced: int
    parked: ParkedCounts = field(default_factory=ParkedCounts)
    environments: dict[str, dict[str, float]] = field(default_factory=dict)
    trouble: str = ""  # why it cannot be read, if its state is `unreadable`

    @property
    def ended(self) -> bool:
        return self.ended_at is not None


async def activate(store: Store, batch_id: str) -> None:
    """Enter a batch into the indexes and wake the dispatcher."""
    created_at = await store.redis.hget(store.keys.batch(batch_id).meta, "created_at")
    if created_at is None:
        return
    pipeline = store.redis.pipeline(transaction=False)
    pipeline.eval(*insisting(store.keys.batches, "ZADD", int(created_at), batch_id))
    pipeline.eval(*insisting(store.keys.active, "ZADD", int(created_at), batch_id))
    await pipeline.execute()
    await store.wake_dispatcher()


async def keep_for(store: Store, batch_id: str, keep_s: float | None) -> None:
    """Set the expiry of a batch's keys in seconds, or remove it."""
    names = await everything(store, batch_id)
    pipeline = store.redis.pipeline(transaction=False)
    for key in names:
        if keep_s is None:
            pipeline.persist(key)
        else:
            pipeline.expire(key, max(1, int(keep_s)))
    await pipeline.execute()


async def everything(store: Store, batch_id: str) -> list[str]:
    """Return all lasting keys of a batch, including those of its consumers."""
    keys = store.keys.batch(batch_id)
    consumers = [name.decode() for name in await store.redis.hkeys(keys.feeds)]
    return [*keys.everything(), *(key for consumer in consumers for key in keys.feed(consumer))]


class Batches:
    """Calls on batches, as the API offers them."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def status(self, batch_id: str) -> BatchSnapshot:
        """Return the state of a batch. Raises NotFound."""
        keys = self._store.keys.batch(batch_id)
        pipeline = self._store.redis.pipeline(transaction=False)
        pipeline.hgetall(keys.meta)
        pipeline.hgetall(keys.stats)
        pipeline.hgetall(self._store.keys.breakers)
        pipeline.hgetall(keys.judges)
        meta, stats, breakers, judges = await pipeline.execute(raise_on_error=False)
        for answer in (meta, stats, breakers, judges):
            if isinstance(answer, Exception) and concerns_redis(answer):
                raise answer
        if not meta:
            raise batch_not_found(batch_id)
        known = [] if isinstance(breakers, Exception) else read_breakers(breakers)
        return _status_or_trouble(batch_id, meta, stats, known, judges)

    async def list(
        self, *, run: str | None = None, state: str | None = None, limit: int = 100, after: str | None = None
    ) -> tuple[list[BatchSnapshot], str | None]:
        """Return batches, newest first, and the cursor of the next page or `None`; fewer if they are large."""
        found: list[BatchSnapshot] = []
        redis = self._store.redis
        position = size = 0
        if after is not None:
            rank = await redis.zrevrank(self._store.keys.batches, after)
            if rank is None:
                raise Invalid("invalid_cursor", f"`after` {after!r} is not a cursor of this list", {"field": "after"})
            position = int(rank) + 1
        breakers = read_breakers(await redis.hgetall(self._store.keys.breakers))
        judges_fail = bool(open_names(breakers, BreakerKind.JUDGE))
        while True:
            stored = await redis.zrevrange(self._store.keys.batches, position, position + 49)
            page = [name.decode(errors="backslashreplace") for name in stored]
            if not page:
                return found, None
            pipeline = redis.pipeline(transaction=False)
            for batch_id in page:
                pipeline.hgetall(self._store.keys.batch(batch_id).meta)
            for batch_id in page if judges_fail else ():
                pipeline.hgetall(self._store.keys.batch(batch_id).judges)
            answers = await pipeline.execute(raise_on_error=False)
            lines = answers[len(page) :] or [{}] * len(page)
            for batch_id, meta, judges in zip(page, answers[: len(page)], lines, strict=True):
                position += 1
                if not meta:  # its retention is over
                    await redis.zrem(self._store.keys.batches, batch_id)
                    position -= 1
                    continue
                status = _status_or_trouble(batch_id, meta, {}, breakers, judges)
                if run not in (None, status.run) or state not in (None, status.state):
                    continue
                found.append(status)
                size += sum(map(len, meta.values()))
                if len(found) == limit or size > PAGE_BYTES:
                    return found, batch_id

    async def active(self) -> AsyncIterator[str]:
        """Yield batches that have not ended, oldest first."""
        for name in await self._store.redis.zrange(self._store.keys.active, 0, -1):
            yield name.decode()

    async def seal(self, batch_id: str) -> BatchSnapshot:
        """Close a batch for further rows. Raises NotFound."""
        known, _ended = await self._store.run(SEAL, self._store.keys.batch(batch_id).scripted(), [])
        if not known:
            raise batch_not_found(batch_id)
        await self._store.wake_dispatcher()
        return await self.status(batch_id)

    async def cancel_batch(self, batch_id: str, *, cause: StopCause = StopCause.CANCELLED) -> Cancellation:
        """Begin to end all unfinished rollouts of a batch; the dispatcher ends those left after this call.

        Unknown batches get a tombstone. Raises Overloaded if there are too many tombstones.
        """
        done = await cancel(self._store, batch_id, "batch", "*", cause=cause)
        await self._store.wake_dispatcher()
        return done

    async def cancel_group(self, group: GroupRef) -> Cancellation:
        """Cancel one group, like `cancel_batch`."""
        done = await cancel(self._store, group.batch_id, "group", str(group.row))
        await self._store.wake_dispatcher()
        return done

    async def cancel_rollout(self, rollout: RolloutRef) -> Cancellation:
        """Cancel one rollout, like `cancel_batch`. Raises NotFound if its group has fewer samples."""
        done = await cancel(self._store, rollout.batch_id, "rollout", rollout.member)
        if done.no_such_sample:
            raise rollout_not_found(str(rollout))
        await self._store.wake_dispatcher()
        return done

    async def requeue(self, batch_id: str, items: Sequence[tuple[str, int, str, bytes]]) -> int:
        """Run failed rollouts again and return their number.

        An item is (member, attempt, environment, its attempts as JSON lines). Raises Conflict while the batch is being
        cancelled.
        """
        keys = self._store.keys.batch(batch_id)
        requeued = 0
        for first in range(0, len(items), REQUEUE_CHUNK):
            args = [value for item in items[first : first + REQUEUE_CHUNK] for value in item]
            done = int(await self._store.run(REQUEUE, keys.scripted(), args))
            if done < 0:
                raise being_cancelled(batch_id)
            requeued += done
        if requeued:
            await keep_for(self._store, batch_id, None)
            await activate(self._store, batch_id)
        return requeued


def _status_or_trouble(
    batch_id: str,
    meta: dict[bytes, bytes] | Exception,
    stats: dict[bytes, bytes] | Exception,
    breakers: Sequence[Breaker],
    judges: dict[bytes, bytes] | Exception,
) -> BatchSnapshot:
    """Return a batch, or the readable part of a damaged one. Raises errors that concern Redis itself."""
    for answer in (meta, stats, judges):
        if isinstance(answer, Exception) and concerns_redis(answer):
            raise answer
    try:
        if isinstance(meta, Exception):
            raise meta
        stats = {} if isinstance(stats, Exception) else stats
        judges = {} if isinstance(judges, Exception) else judges
        return _status(batch_id, meta, stats, breakers, judges)
    except (*DECODE_ERRORS, RedisError) as error:
        fields = {} if isinstance(meta, Exception) else meta

        def number(name: str) -> int:
            return read_or_none("counter of batch", batch_id, int, fields.get(name.encode(), 0)) or 0

        return BatchSnapshot(
            batch_id=batch_id,
            run=printable(fields.get(b"run", b"")),
            state="unreadable",
            sealed=fields.get(b"sealed") == b"1",
            spec={},
            ledger=Ledger(**{name: number(name) for name in Ledger.names()}),
            created_at=number("created_at"),
            ended_at=number("ended_at") or None,
            fenced=number("fenced"),
            trouble=reason(error),
        )


def _status(
    batch_id: str,
    meta: dict[bytes, bytes],
    stats: dict[bytes, bytes],
    breakers: Sequence[Breaker],
    judges: dict[bytes, bytes],
) -> BatchSnapshot:
    ledger = Ledger(**{name: int(meta.get(name.encode(), 0)) for name in Ledger.names()})
    options = read_options(meta[b"spec"])
    sealed = meta.get(b"sealed") == b"1"
    ended_at = _moment(meta[b"ended_at"]) if b"ended_at" in meta else None
    cause = read_stop(meta.get(b"cancel"))
    state: BatchState
    if cause is not None:
        state = "cancelled" if cause is StopCause.CANCELLED else "expired"
    elif ended_at is not None:
        state = "done"
    else:
        state = "running" if sealed else "open"
    environments: dict[str, dict[str, float]] = {}
    for name, value in stats.items():
        environment, _, quantity = printable(name).rpartition("|")
        total = read_or_none("sum of batch", f"{batch_id} {printable(name)}", float, value)
        if total is not None and math.isfinite(total):
            environments.setdefault(environment, {})[quantity] = total
    return BatchSnapshot(
        batch_id=batch_id,
        run=meta[b"run"].decode(),
        state=state,
        sealed=sealed,
        spec=options,
        ledger=ledger,
        created_at=_moment(meta[b"created_at"]),
        ended_at=ended_at,
        fenced=int(meta.get(b"fenced", 0)),
        parked=(read_or_none("spec of batch", batch_id, _parked, meta, breakers, judges) if breakers else None)
        or ParkedCounts(),
        environments=environments,
    )


def _moment(text: bytes) -> int:
    """Return a time in ms. Raises a decode error for a time outside the calendar."""
    moment = int(text)
    if not 0 <= moment < 2**47:
        raise ValueError(f"{moment} is no time in ms")
    return moment


def _parked(meta: dict[bytes, bytes], breakers: Sequence[Breaker], judges: dict[bytes, bytes]) -> ParkedCounts:
    waiting = int(meta.get(b"queued", 0)) - int(meta.get(b"dispatched", 0))
    policy = policy_key(read_spec(meta[b"spec"]).policy)
    counted = {
        name.decode().partition("|")[2]: int(number) for name, number in meta.items() if name.startswith(b"parked|")
    }
    return parked_in(waiting, policy, counted, breakers, waiting_of(judges))


def batch_not_found(batch_id: str) -> NotFound:
    return NotFound("batch_not_found", f"there is no batch {batch_id}", {"batch_id": batch_id})


def rollout_not_found(rollout_id: str) -> NotFound:
    return NotFound("rollout_not_found", f"there is no rollout {rollout_id}", {"rollout_id": rollout_id})


def being_cancelled(batch_id: str) -> Conflict:
    return Conflict(
        "being_cancelled",
        f"batch {batch_id} is being cancelled; wait until all of its rollouts have ended",
        {"batch_id": batch_id},
    )


def batch_conflict(batch_id: str) -> Conflict:
    return Conflict(
        "batch_conflict",
        f"batch {batch_id} exists with another body; send the same body again, or choose another batch_id",
        {"batch_id": batch_id},
    )


def task_conflict(batch_id: str, task_id: str) -> Conflict:
    return Conflict(
        "task_conflict",
        f"task {task_id} of batch {batch_id} comes again with another body; nothing of the request was added",
        {"batch_id": batch_id, "task_id": task_id},
    )
