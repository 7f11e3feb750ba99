"""The completion log of a batch: results in order of completion, read by cursor, at least once, never missing one.

A cursor is the id of an entry in the batch's log. Records are JSON as the API shows them (`view=light`); other views
add the trajectory. Rollouts that the farm itself ended (cancelled, expired, lost) get their record on reading.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import orjson

from gym.errors import Invalid
from gym.ids import RolloutRef
from gym.jsontypes import JsonObject
from gym.results.blobs import BlobStore
from gym.results.result import View, identity, rfc3339
from gym.rollout import RolloutState
from gym.state.ledger.batches import batch_not_found, rollout_not_found
from gym.state.ledger.log_position import START, check_position
from gym.state.ledger.result_records import LogEntry, RecordReader, head_of, is_result, read_tries
from gym.state.redis.encodings import live_or_none, log_id_of
from gym.state.redis.store import Store
from gym.state.redis.unreadable import printable

__all__ = ["LogPage", "ResultLog", "View", "gather_s", "rfc3339"]

_CURSOR = re.compile(r"[0-9]{1,15}-[0-9]{1,10}")
WAIT_SLICE_S = 1.0
GATHER_S = 0.02
FRESH_S = 0.1


@dataclass(frozen=True, slots=True)
class LogPage:
    """A page of results; `cursors` are parallel to `records`, which are JSON texts or packed (msgpack)."""

    records: list[bytes]
    cursors: list[str]
    next_after: str
    done: bool
    more: bool = False  # there was more in the log than was asked for


def gather_s(after: str | None) -> float:
    """Return how long a reader close behind a busy feed waits, so that an answer holds several results.

    Each answer costs as much as many results, and a reader woken for each one is no faster. Behind an older result, or
    none, there is no wait.
    """
    if after is None or not _CURSOR.fullmatch(after):
        return 0.0
    entered_ms = int(after.partition("-")[0])
    return GATHER_S if time.time() - entered_ms / 1000 < FRESH_S else 0.0


class ResultLog:
    """Reader of the log and the trajectories."""

    def __init__(self, store: Store, blobs: BlobStore) -> None:
        self._store = store
        self._reader = RecordReader(store, blobs)

    async def page(self, batch_id: str, *, after: str | None, limit: int, view: View, packed: bool = False) -> LogPage:
        """Return up to `limit` results after a cursor, as JSON texts or `packed`.

        Raises NotFound, Invalid for an invalid cursor, or LogWentBack if the log has gone back behind the cursor.
        """
        cursor = _cursor(after)
        keys = self._store.keys.batch(batch_id)
        pipeline = self._store.redis.pipeline(transaction=False)
        # the end is read first: an entry that comes in between is not missed
        pipeline.hmget(keys.meta, ["run", "ended_at"])
        # the entry at the cursor shows that the log has not gone back
        pipeline.xrange(keys.log, min=cursor, max="+", count=limit + 2)
        (run, ended_at), entries = await pipeline.execute()
        if run is None:
            raise batch_not_found(batch_id)
        if entries and entries[0][0].decode() == cursor:
            del entries[0]
        elif cursor != START:
            await check_position(self._store.redis, keys, cursor)
        more = len(entries) > limit
        entries = entries[:limit]
        next_after = entries[-1][0].decode() if entries else cursor
        results = [entry for entry in entries if is_result(entry)]
        records = await self.records(batch_id, printable(run), results, view, packed=packed)
        cursors = [entry_id.decode() for entry_id, _ in results]
        return LogPage(records, cursors, next_after, ended_at is not None and not more, more)

    async def check(self, batch_id: str, position: str) -> None:
        """Raise LogWentBack if the log has gone back behind a cursor, Invalid if the cursor is invalid."""
        await check_position(self._store.redis, self._store.keys.batch(batch_id), _cursor(position))

    async def wait(self, batch_id: str, *, after: str | None, timeout_s: float) -> None:
        """Return when there is something after the cursor, at the latest after `timeout_s` or `WAIT_SLICE_S`.

        The slice lets the caller see that a batch ended without a further result.
        """
        block_ms = max(1, int(min(timeout_s, WAIT_SLICE_S) * 1000))
        await self._store.redis.xread({self._store.keys.batch(batch_id).log: after or START}, count=1, block=block_ms)

    async def get(self, rollout: RolloutRef, view: View) -> JsonObject:
        """Return one rollout, finished or not. Raises NotFound."""
        keys = self._store.keys.batch(rollout.batch_id)
        pipeline = self._store.redis.pipeline(transaction=False)
        pipeline.hget(keys.meta, "run")
        pipeline.hget(keys.done, rollout.member)
        pipeline.hget(keys.live, rollout.member)
        pipeline.hget(keys.rows, str(rollout.row))
        pipeline.hget(keys.tries, rollout.member)
        run, done, live, row, tries = await pipeline.execute()
        if run is None or row is None or rollout.sample >= _samples(row):
            raise rollout_not_found(str(rollout))
        log_id = log_id_of(done)
        if _CURSOR.fullmatch(log_id):
            entries = await self._store.redis.xrange(keys.log, min=log_id, max=log_id)
            if entries and is_result(entries[0]):
                [record] = await self.records(rollout.batch_id, printable(run), entries, view)
                finished: JsonObject = orjson.loads(record)
                finished["state"] = finished["outcome"]
                return finished
        return _unfinished(rollout, printable(run), live, row, tries)

    async def records(
        self,
        batch_id: str,
        run: str,
        entries: Sequence[LogEntry],
        view: View,
        *,
        packed: bool = False,
    ) -> list[bytes]:
        """Return the records of entries that are results, in their order, as JSON texts or `packed`.

        One that cannot be read has `error.kind` `result_unreadable`. Raises Unavailable while the store is away.
        """
        return await self._reader.records(batch_id, run, entries, view, packed=packed)

    async def unreadable(self, batch_id: str, expected: Mapping[str, bool]) -> dict[str, str]:
        """Return the members whose stored trajectory cannot be read, each with the reason.

        `expected` tells which of them must have one.
        """
        return await self._reader.unreadable(batch_id, expected)


def _cursor(after: str | None) -> str:
    cursor = after or START
    if not _CURSOR.fullmatch(cursor):
        raise Invalid(
            "invalid_cursor",
            f"`after` {cursor!r} is not a cursor; use next_after of an earlier answer",
            {"field": "after"},
        )
    return cursor


def _samples(row: bytes) -> int:
    """Return the number of a group's rollouts; unlimited for a damaged row, so that none is refused."""
    samples = row.split(b" ", 1)[0]
    return int(samples) if samples.isdigit() else sys.maxsize


def _unfinished(rollout: RolloutRef, run: str, live: bytes | None, row: bytes, tries: bytes | None) -> JsonObject:
    task_id, environment = head_of(row)
    known = live_or_none(live)
    attempts = read_tries(tries)
    return {
        **identity(rollout, run=run, task_id=task_id, environment=environment),
        "state": known.state.state if known else RolloutState.QUEUED,
        "attempt": known.attempt if known else len(attempts) + 1,
        "outcome": None,
        "worker": known.holder if known else None,
        "attempts": attempts,
    }
