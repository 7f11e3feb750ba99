"""The feed of a batch: results in order of completion, read by cursor, at least once, never missing one.

A cursor is the id of an entry in the batch's log. Records are JSON as the API shows them (`view=light`); a trajectory
is added where the view asks for it. What the farm itself ended (cancelled, expired, lost) has a record made on reading.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import orjson

from gym.errors import Invalid
from gym.ids import RolloutRef, parse_member
from gym.jsontypes import JsonObject
from gym.results.blobs import BlobStore
from gym.results.record import add_trajectory, pack_record, pack_with_trajectory
from gym.rollout import RolloutState
from gym.state.batches import batch_not_found, rollout_not_found
from gym.state.keys import BatchKeys
from gym.state.log_position import START, check_position
from gym.state.rollouts import LIVE_STATES
from gym.state.store import Store

_CURSOR = re.compile(r"[0-9]{1,15}-[0-9]{1,10}")
WAIT_SLICE_S = 1.0
GATHER_S = 0.02
FRESH_S = 0.1
LogEntry = tuple[bytes, dict[bytes, bytes]]  # its id, its fields


class View(StrEnum):
    """How much of a result is given."""

    LIGHT = "light"
    FULL = "full"
    TRAINING = "training"


@dataclass(frozen=True, slots=True)
class Page:
    """A page of results; `cursors` lie side by side with `records`, which are JSON texts or packed (msgpack)."""

    records: list[bytes]
    cursors: list[str]
    next_after: str
    done: bool


def gather_s(after: str | None) -> float:
    """How long whoever reads right behind a busy feed is to wait, so that an answer holds several results.

    Each answer costs as much as many results, and a reader that is woken for each one takes them no sooner. Behind a
    result that is not fresh, or none, nobody waits.
    """
    if after is None or not _CURSOR.fullmatch(after):
        return 0.0
    entered_ms = int(after.partition("-")[0])
    return GATHER_S if time.time() - entered_ms / 1000 < FRESH_S else 0.0


class Results:
    """Reads the log and what belongs to it."""

    def __init__(self, store: Store, blobs: BlobStore) -> None:
        self._store = store
        self._blobs = blobs

    async def page(self, batch_id: str, *, after: str | None, limit: int, view: View, packed: bool = False) -> Page:
        """Up to `limit` results after a cursor, as JSON texts or `packed`.

        Raises NotFound, Invalid for a cursor that is none, or LogWentBack for one that the log has gone back behind.
        """
        cursor = _cursor(after)
        keys = self._store.keys.batch(batch_id)
        pipeline = self._store.redis.pipeline(transaction=False)
        # the end is read first: an entry that comes in between is not missed
        pipeline.hmget(keys.meta, ["run", "ended_at"])
        # what lies at the cursor shows that the log still has what was read
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
        records = await self.records(batch_id, run.decode(), entries, view, packed=packed)
        cursors = [entry_id.decode() for entry_id, _ in entries]
        return Page(records, cursors, cursors[-1] if cursors else cursor, ended_at is not None and not more)

    async def check(self, batch_id: str, position: str) -> None:
        """Raise LogWentBack where the log has gone back behind a cursor, or Invalid where that is none."""
        await check_position(self._store.redis, self._store.keys.batch(batch_id), _cursor(position))

    async def wait(self, batch_id: str, *, after: str | None, timeout_s: float) -> None:
        """Return when there is something after the cursor, at the latest after `timeout_s` or `WAIT_SLICE_S`.

        The slice lets the caller see that a batch ended without a further result.
        """
        block_ms = max(1, int(min(timeout_s, WAIT_SLICE_S) * 1000))
        await self._store.redis.xread({self._store.keys.batch(batch_id).log: after or START}, count=1, block=block_ms)

    async def get(self, rollout: RolloutRef, view: View) -> JsonObject:
        """One rollout, finished or not. Raises NotFound."""
        keys = self._store.keys.batch(rollout.batch_id)
        pipeline = self._store.redis.pipeline(transaction=False)
        pipeline.hget(keys.meta, "run")
        pipeline.hget(keys.done, rollout.member)
        pipeline.hget(keys.live, rollout.member)
        pipeline.hget(keys.rows, str(rollout.row))
        pipeline.hget(keys.tries, rollout.member)
        run, done, live, row, tries = await pipeline.execute()
        if run is None or row is None or rollout.sample >= int(row.split(b" ", 1)[0]):
            raise rollout_not_found(str(rollout))
        if done is not None:
            log_id = done.decode().rpartition("|")[2]
            entries = await self._store.redis.xrange(keys.log, min=log_id, max=log_id)
            if entries:
                [record] = await self.records(rollout.batch_id, run.decode(), entries, view)
                finished: JsonObject = orjson.loads(record)
                finished["state"] = finished["outcome"]
                return finished
        return _unfinished(rollout, run.decode(), live, row, tries)

    async def records(
        self,
        batch_id: str,
        run: str,
        entries: Sequence[LogEntry],
        view: View,
        *,
        packed: bool = False,
    ) -> list[bytes]:
        """The records of entries of the log, in their order, as JSON texts or `packed`."""
        keys = self._store.keys.batch(batch_id)
        records = [fields.get(b"j") for _, fields in entries]
        members = [fields[b"m"].decode() for _, fields in entries]
        made = [number for number, record in enumerate(records) if record is None]
        if made:
            rows, tries = await self._facts(keys, [members[number] for number in made])
            for number, row, lines in zip(made, rows, tries, strict=True):
                records[number] = orjson.dumps(
                    _made_record(parse_member(batch_id, members[number]), run, entries[number][1], row, lines)
                )
        light = [record for record in records if record is not None]
        if view is View.LIGHT or not light:
            return [pack_record(record) for record in light] if packed else light
        rows = await self._store.redis.hmget(keys.rows, [member.partition(":")[0] for member in members])
        blobs = await self._store.redis.hmget(keys.traj, members)
        dropped = None if all(blobs) else await self._store.redis.hget(keys.meta, "dropped")
        trajectories = await self._blobs.read_many(blobs)
        add = pack_with_trajectory if packed else add_trajectory
        return [
            add(
                record,
                trajectory,
                row.partition(b"\n")[2],
                full=view is View.FULL,
                dropped=_dropped(dropped, record) if dropped and not blob else None,
            )
            for record, blob, trajectory, row in zip(light, blobs, trajectories, rows, strict=True)
        ]

    async def _facts(self, keys: BatchKeys, members: list[str]) -> tuple[list[bytes], list[bytes | None]]:
        pipeline = self._store.redis.pipeline(transaction=False)
        pipeline.hmget(keys.rows, [member.partition(":")[0] for member in members])
        pipeline.hmget(keys.tries, members)
        rows, tries = await pipeline.execute()
        return rows, tries


def _cursor(after: str | None) -> str:
    cursor = after or START
    if not _CURSOR.fullmatch(cursor):
        raise Invalid(
            "invalid_cursor",
            f"`after` {cursor!r} is not a cursor; use next_after of an earlier answer",
            {"field": "after"},
        )
    return cursor


def _head(row: bytes) -> tuple[str, str]:
    """(task id, environment) of a stored row."""
    _samples, environment, _published, task_id = row.partition(b"\n")[0].decode().split(" ")
    return task_id, environment


def _attempts(lines: bytes | None) -> list[Any]:
    return [orjson.loads(line) for line in (lines or b"").splitlines() if line]


def _made_record(
    rollout: RolloutRef, run: str, fields: dict[bytes, bytes], row: bytes, tries: bytes | None
) -> JsonObject:
    """The record of a rollout that no worker ended."""
    task_id, environment = _head(row)
    attempts = _attempts(tries)
    error = None
    if fields[b"e"]:
        error = {**orjson.loads(fields[b"e"]), "attempts": attempts}
    return {
        **_identity(rollout, run, task_id, environment),
        "attempt": int(fields[b"a"]),
        "outcome": fields[b"o"].decode(),
        "stop_reason": fields[b"s"].decode(),
        "error": error,
        "reward": None,
        "reward_components": {},
        "judge": None,
        "verdicts": [],
        "policy_version": None,
        "usage": {"input_tokens": 0, "output_tokens": 0},
        "model_calls": 0,
        "tool_calls": 0,
        "timing": dict.fromkeys(("queued_s", "environment_s", "model_s", "tool_s", "judge_s", "total_s"), 0.0),
        "finished_at": rfc3339(int(fields[b"t"])),
    }


def _dropped(mark: bytes, record: bytes) -> JsonObject | None:
    """What is said in place of a trajectory that was dropped; `None` for a rollout that never had one."""
    if not orjson.loads(record).get("model_calls"):
        return None
    reason, _, moment = mark.decode().partition("|")
    return {"reason": reason, "at": rfc3339(int(moment))}


def _unfinished(rollout: RolloutRef, run: str, live: bytes | None, row: bytes, tries: bytes | None) -> JsonObject:
    """A rollout that has not ended, as far as it is known."""
    task_id, environment = _head(row)
    parts = live.decode().split("|") if live else []
    state = LIVE_STATES[parts[0]] if parts else RolloutState.QUEUED
    attempts = _attempts(tries)
    return {
        **_identity(rollout, run, task_id, environment),
        "state": state,
        "attempt": int(parts[1]) if parts else len(attempts) + 1,
        "outcome": None,
        "worker": parts[5] if len(parts) > 5 else None,
        "attempts": attempts,
    }


def _identity(rollout: RolloutRef, run: str, task_id: str, environment: str) -> JsonObject:
    return {
        "rollout_id": str(rollout),
        "batch_id": rollout.batch_id,
        "run": run,
        "group_id": rollout.group_id,
        "task_id": task_id,
        "sample_index": rollout.sample,
        "environment": environment,
    }


def rfc3339(ms: int) -> str:
    """A timestamp as the API gives it."""
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
