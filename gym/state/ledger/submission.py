"""Submission of rows: staged under invisible row numbers, then published by one script, all or none.

The additional steps of a large request are in `gym.state.ledger.publication`.

Memory here grows with the task ids that the caller gave, not with the rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from redis.exceptions import OutOfMemoryError

from gym.errors import Conflict, Unavailable
from gym.ids import new_id
from gym.jsontypes import JsonObject
from gym.plain import exact_json
from gym.state.ledger.batches import activate, batch_conflict, batch_not_found, task_conflict
from gym.state.ledger.cancellation import cancel
from gym.state.ledger.publication import AT_ONCE, Turn, check_tasks, finish
from gym.state.redis.keys import BatchKeys
from gym.state.redis.store import PUBLISH, Argument, Store
from gym.state.redis.unreadable import read_or_none
from gym.task import RowHeader

STAGED_TTL_S = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedRow:
    """A row that passed its checks, with its bytes as they were sent (JSON on one line)."""

    header: RowHeader
    raw: bytes
    digest: str  # of its canonical JSON; only looked at where the caller gave a task id


@dataclass(frozen=True, slots=True, kw_only=True)
class NewBatch:
    """Fields of a batch that its creation writes beside its rows."""

    spec: JsonObject
    digest: str
    run: str
    priority: int
    weight: float
    policy: str  # a registered name, or an empty text for an inline policy


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmissionResult:
    """Result of a submission; `created` is false if the same one had been made before."""

    accepted: int
    repeated: int
    submitted: int
    created: bool = False


def canonical_digest(value: object) -> str:
    """Return a digest of JSON that does not depend on the order of keys."""
    return hashlib.blake2b(exact_json.dumps_flat(value, sort_keys=True), digest_size=12).hexdigest()


class Staging:
    """Rows of one request before publication; `publish` makes them visible, `abort` forgets them."""

    def __init__(self, store: Store, batch_id: str) -> None:
        self._store = store
        self._keys = store.keys.batch(batch_id)
        self._batch_id = batch_id
        self._request_id = new_id("req")
        self._staged = self._samples = 0
        self._ranges: list[list[int]] = []
        self._repeated = 0
        self._tasks: dict[str, str] = {}  # ids of this request and their digests

    async def add(self, rows: Sequence[StagedRow]) -> None:
        """Stage rows in order. Raises Conflict if a task id of this request is repeated with another body."""
        fresh = [row for row in rows if self._is_fresh(row)]
        self._repeated += len(rows) - len(fresh)
        if not fresh:
            return
        now = await self._store.now_ms()
        end = int(await self._store.redis.incrby(self._keys.seq, len(fresh)))
        first = end - len(fresh)
        if self._ranges and self._ranges[-1][1] == first:
            self._ranges[-1][1] = end
        else:
            self._ranges.append([first, end])
        values: dict[str | bytes, bytes] = {}
        entries: list[str] = []
        tasks: list[str] = []
        for number, row in enumerate(fresh, first):
            header = row.header
            task_id = header.task_id or f"row:{number}"
            values[str(number)] = f"{header.num_samples} {header.environment} {now} {task_id}\n".encode() + row.raw
            entries.append(f"{number}:0:{header.num_samples}:{header.environment}")
            tasks.append(f"{header.task_id} {row.digest}" if header.task_id is not None else "")
        ranges = f"{now} " + " ".join(f"{start}:{stop}" for start, stop in self._ranges)
        pipeline = self._store.redis.pipeline(transaction=False)
        # known as unpublished before it can be seen
        pipeline.hset(self._keys.staging, self._request_id, ranges)
        pipeline.zadd(self._store.keys.staged, {self._batch_id: now})
        pipeline.hset(self._keys.rows, mapping=values)
        pipeline.rpush(self._keys.stage(self._request_id), *entries)
        pipeline.rpush(self._keys.stage_tasks(self._request_id), *tasks)
        pipeline.expire(self._keys.stage(self._request_id), STAGED_TTL_S)
        pipeline.expire(self._keys.stage_tasks(self._request_id), STAGED_TTL_S)
        await pipeline.execute()
        self._staged += len(fresh)
        self._samples += sum(row.header.num_samples for row in fresh)

    def _is_fresh(self, row: StagedRow) -> bool:
        task_id = row.header.task_id
        if task_id is None:
            return True
        known = self._tasks.get(task_id)
        if known is None:
            self._tasks[task_id] = row.digest
            return True
        if known != row.digest:
            raise task_conflict(self._batch_id, task_id)
        return False

    async def publish(self, *, create: NewBatch | None, seal: bool) -> SubmissionResult:
        """Make the rows visible, all or none.

        Raises NotFound, or Conflict if the batch is sealed, cancelled, or made of another body. Raises Unavailable if
        the staged rows are not intact (a restart lost some, or a repeated command doubled them), or if other rows of
        the batch are being published for too long.
        """
        head: list[str | bytes | int | float] = ["", "", "", 0, 0, ""]
        if create is not None:
            head = [orjson.dumps(create.spec), create.digest, create.run, create.priority, create.weight, create.policy]
        large = self._staged > AT_ONCE
        try:
            verdict, accepted, repeated, submitted, task = await self._publish(
                ["create" if create else "append", int(seal), *head, self._request_id, self._staged, self._samples],
                compare=large and create is None and bool(self._tasks),
                large=large,
            )
        except (OutOfMemoryError, Unavailable):  # Redis is full, perhaps because of these rows
            await self.abort()
            raise
        answer = SubmissionResult(
            accepted=accepted, repeated=repeated + self._repeated, submitted=submitted, created=verdict == b"created"
        )
        if verdict in (b"created", b"appended"):
            if large:
                await finish(self._store, self._batch_id, self._request_id)
            await self._announce()
            return answer
        await self.abort()
        match verdict:
            case b"exists":
                await self._announce()
                return answer
            case b"missing":
                raise batch_not_found(self._batch_id)
            case b"task_conflict":
                raise task_conflict(self._batch_id, task.decode())
            case b"conflict":
                raise batch_conflict(self._batch_id)
            case b"damaged":
                raise Unavailable(
                    "rows_lost",
                    f"rows for batch {self._batch_id} were lost or doubled on their way through Redis; nothing was "
                    "added, send the same request again",
                    {"batch_id": self._batch_id},
                    retry_after_s=1,
                )
            case _:
                raise Conflict(
                    f"batch_{verdict.decode()}",
                    f"batch {self._batch_id} is {verdict.decode()} and takes no more rows; nothing was added",
                    {"batch_id": self._batch_id},
                )

    async def _publish(self, args: list[Argument], *, compare: bool, large: bool) -> Any:
        """Return the answer of the script, when it is this request's turn."""
        keys, request_id = self._keys, self._request_id
        if compare:
            verdict, task = await check_tasks(self._store, self._batch_id, request_id, self._staged)
            if verdict != "checked":
                return verdict.encode(), 0, 0, 0, task.encode()
        names = [
            *keys.scripted(),
            keys.stage(request_id),
            keys.stage_tasks(request_id),
            keys.stage_progress(request_id),
            keys.publisher,
            keys.stage_done(request_id),
        ]
        turn = Turn(self._store, self._batch_id)
        while True:
            answer = await self._store.run(PUBLISH, names, [*args, int(large)])
            if answer[0] != b"busy":
                return answer
            await turn.wait()

    async def _announce(self) -> None:
        """Enter the batch into the indexes, and carry out cancellations that arrived before it.

        A client's retry after a crash repeats both.
        """
        await bury(self._store, self._batch_id)
        await activate(self._store, self._batch_id)

    async def abort(self) -> None:
        """Forget the staged rows."""
        if not self._ranges:
            return
        await discard_staged(self._store, self._keys, self._request_id, self._ranges)
        self._ranges = []


async def discard_staged(store: Store, keys: BatchKeys, request_id: str, ranges: Sequence[Sequence[int]]) -> None:
    """Delete the unpublished rows of a request."""
    redis = store.redis
    for start, stop in ranges:
        for first in range(start, stop, 1000):
            await redis.hdel(keys.rows, *(str(number) for number in range(first, min(first + 1000, stop))))
    await redis.unlink(keys.stage(request_id), keys.stage_tasks(request_id), keys.stage_progress(request_id))
    await redis.hdel(keys.staging, request_id)


async def existing(store: Store, batch_id: str, digest: str) -> SubmissionResult | None:
    """Return the answer to a repeated creation, `None` if the id is free.

    Raises Conflict if the batch was made of another body.
    """
    values = await store.redis.hmget(store.keys.batch(batch_id).meta, ["digest", "submitted"])
    if values[0] is None:
        return None
    if values[0].decode() != digest:
        raise batch_conflict(batch_id)
    await activate(store, batch_id)
    return SubmissionResult(accepted=0, repeated=0, submitted=int(values[1]))


async def bury(store: Store, batch_id: str) -> None:
    """Carry out the cancellations that arrived before their targets."""
    tombs = await store.redis.smembers(store.keys.batch(batch_id).tombs)
    if tombs:
        await store.redis.zrem(store.keys.tombstoned, batch_id)
    for name in sorted(tomb.decode() for tomb in tombs):
        if name == "*":
            await cancel(store, batch_id, "batch", name, go_on=True)
        else:
            await cancel(store, batch_id, "rollout" if ":" in name else "group", name)


async def sweep_staged(store: Store, now_ms: int) -> None:
    """Delete rows staged by requests whose api process died an hour ago, also of batches that were never created."""
    limit = now_ms - STAGED_TTL_S * 1000
    for name in await store.redis.zrangebyscore(store.keys.staged, "-inf", limit, start=0, num=10):
        keys = store.keys.batch(name.decode(errors="backslashreplace"))
        # taken out first: a younger request enters the batch again
        await store.redis.zrem(store.keys.staged, name)
        for request_id, text in (await store.redis.hgetall(keys.staging)).items():
            staged = read_or_none("staged rows", request_id, _staged, text)
            if staged is not None and staged[0] <= limit:
                await discard_staged(store, keys, request_id.decode(), staged[1])
        if not await store.redis.exists(keys.meta) and not await store.redis.exists(keys.staging):
            await store.redis.delete(keys.seq)


def _staged(text: bytes) -> tuple[int, list[list[int]]]:
    """Return since when rows are staged, and their ranges."""
    since, *ranges = text.decode().split(" ")
    return int(since), [[int(number) for number in span.split(":")] for span in ranges]


async def unannounced(store: Store, after_ms: int, until_ms: int) -> list[str]:
    """Return batches that exist, have not ended and are in no index, and whose rows came between these times."""
    found = await store.redis.zrangebyscore(store.keys.staged, f"({after_ms}", until_ms)
    names = [name.decode(errors="backslashreplace") for name in found]
    pipeline = store.redis.pipeline(transaction=False)
    for name in names:
        pipeline.hmget(store.keys.batch(name).meta, ["created_at", "ended_at"])
        pipeline.zscore(store.keys.active, name)
    answers = await pipeline.execute() if names else []
    return [
        name
        for name, (created_at, ended_at), active in zip(names, answers[::2], answers[1::2], strict=True)
        if created_at is not None and ended_at is None and active is None
    ]
