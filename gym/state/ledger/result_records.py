"""Records of results as readers get them, in JSON or msgpack, built from the log and the keys beside it.

Invariant: an entry whose record or trajectory cannot be read becomes a result with `error.kind` `result_unreadable`,
without reward and tokens; its neighbours are delivered as they are. Only a store that is away stops a page, for a
while.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from gym.errors import ErrorKind, ResultUnreadable, Stage
from gym.ids import RolloutRef, parse_member
from gym.jsontypes import JsonObject
from gym.plain import exact_json, exact_msgpack
from gym.results.blobs import BlobStore
from gym.results.record import add_trajectory, pack_record, pack_with_trajectory, unpack_trajectory, unreadable_record
from gym.results.result import (
    ResultFailure,
    RolloutIdentity,
    RolloutResult,
    View,
    failed_attempt,
    identity,
    rfc3339,
)
from gym.rollout import Outcome, StopReason
from gym.state.alarms import Alarm, AlarmKind, Alarms
from gym.state.redis.encodings import attempt_of
from gym.state.redis.keys import BatchKeys
from gym.state.redis.store import Store
from gym.state.redis.unreadable import DECODE_ERRORS, complain, read_object, reason

READ_AT_ONCE = 32
SAY_AGAIN_S = 60.0
MOST_BATCHES = 1000
SHOWN = 20
MISSING = "its trajectory is missing"
_LOG = logging.getLogger(__name__)
LogEntry = tuple[bytes, dict[bytes, bytes]]  # its id, its fields
_MEMBER = re.compile(rb"[0-9]{1,12}:[0-9]{1,12}")


def is_result(entry: LogEntry) -> bool:
    """Return whether an entry of the log names a rollout; others are passed over."""
    return _MEMBER.fullmatch(entry[1].get(b"m", b"")) is not None


@dataclass(frozen=True, slots=True)
class _Stored:
    """A record with the stored values that belong to it."""

    record: bytes
    blob: bytes | None
    row: bytes | None
    trajectory: bytes | ResultUnreadable | None


class RecordReader:
    """Reader of records and trajectories."""

    def __init__(self, store: Store, blobs: BlobStore) -> None:
        self._store = store
        self._blobs = blobs
        self._say_again_at: dict[str, float] = {}

    async def records(
        self, batch_id: str, run: str, entries: Sequence[LogEntry], view: View, *, packed: bool
    ) -> list[bytes]:
        """Return the records of entries that are results, in their order."""
        light = await self._light(batch_id, run, entries)
        if view is View.LIGHT or not light:
            return [pack_record(record) for record in light] if packed else light
        keys = self._store.keys.batch(batch_id)
        members = [fields[b"m"].decode() for _, fields in entries]
        rows = await self._store.redis.hmget(keys.rows, [member.partition(":")[0] for member in members])
        blobs = await self._store.redis.hmget(keys.traj, members)
        dropped = None if all(blobs) else await self._store.redis.hget(keys.meta, "dropped")
        trajectories = await self._blobs.read_many(blobs)
        records = []
        failed: dict[str, str] = {}
        for member, *parts in zip(members, light, blobs, rows, trajectories, strict=True):
            stored = _Stored(*parts)
            try:
                records.append(_heavy(stored, dropped, view, packed=packed))
            except (*DECODE_ERRORS, ResultUnreadable) as error:
                failed[member] = why = _why(error)
                shown = unreadable_record(stored.record, _body(stored.row), why, full=view is View.FULL)
                records.append(exact_msgpack.packb(shown) if packed else exact_json.dumps(shown))
        if failed:
            await self._raise_alarm(batch_id, failed)
        return records

    async def _raise_alarm(self, batch_id: str, failed: Mapping[str, str]) -> None:
        now = time.monotonic()
        if now < self._say_again_at.get(batch_id, 0.0):
            return
        if len(self._say_again_at) >= MOST_BATCHES:
            self._say_again_at.clear()
        self._say_again_at[batch_id] = now + SAY_AGAIN_S
        alarm = unreadable_alarm(batch_id, list(failed), next(iter(failed.values())))
        if await Alarms(self._store).raise_alarm(alarm):
            _LOG.error("%s", alarm.message, extra={"action": alarm.kind.value, "batch_id": batch_id})

    async def unreadable(self, batch_id: str, expected: Mapping[str, bool]) -> dict[str, str]:
        """Return the members whose stored trajectory cannot be read, each with the reason.

        `expected` tells for each whether it must have one, unless the batch's were dropped.
        """
        keys = self._store.keys.batch(batch_id)
        dropped = await self._store.redis.hexists(keys.meta, "dropped")
        members = list(expected)
        found = {}
        for first in range(0, len(members), READ_AT_ONCE):
            part = members[first : first + READ_AT_ONCE]
            blobs = await self._store.redis.hmget(keys.traj, part)
            for member, blob, packed in zip(part, blobs, await self._blobs.read_many(blobs), strict=True):
                why = _unreadable_because(packed) if blob else MISSING if expected[member] and not dropped else ""
                if why:
                    found[member] = why
        return found

    async def _light(self, batch_id: str, run: str, entries: Sequence[LogEntry]) -> list[bytes]:
        """Return the light records; those that no worker wrote, or that are damaged, are built here."""
        records: list[bytes | None] = [_readable(fields.get(b"j")) for _, fields in entries]
        made = [number for number, record in enumerate(records) if record is None]
        if made:
            keys = self._store.keys.batch(batch_id)
            members = [entries[number][1][b"m"].decode() for number in made]
            for number, facts in zip(made, await self._facts(keys, members), strict=True):
                rollout = parse_member(batch_id, facts.member)
                records[number] = _made_record(rollout, run, entries[number], facts)
        return [record for record in records if record is not None]

    async def _facts(self, keys: BatchKeys, members: list[str]) -> list[_Facts]:
        pipeline = self._store.redis.pipeline(transaction=False)
        pipeline.hmget(keys.rows, [member.partition(":")[0] for member in members])
        pipeline.hmget(keys.tries, members)
        pipeline.hmget(keys.done, members)
        return [_Facts(*each) for each in zip(members, *await pipeline.execute(), strict=True)]


@dataclass(frozen=True, slots=True)
class _Facts:
    """Stored values from which a record is built if no worker wrote one."""

    member: str
    row: bytes | None
    tries: bytes | None
    done: bytes | None


def _heavy(stored: _Stored, dropped: bytes | None, view: View, *, packed: bool) -> bytes:
    """Return a record with its trajectory. Raises ResultUnreadable, or a decode error."""
    if isinstance(stored.trajectory, ResultUnreadable):
        raise stored.trajectory
    mark = None
    if not stored.blob:
        record = read_object(stored.record)
        if dropped is None and has_trajectory(record):
            raise ResultUnreadable(MISSING)
        mark = _dropped(dropped) if dropped is not None and record.get("model_calls") else None
    add = pack_with_trajectory if packed else add_trajectory
    return add(stored.record, stored.trajectory, _body(stored.row), full=view is View.FULL, dropped=mark)


def has_trajectory(record: JsonObject) -> bool:
    """Return whether a trajectory must be stored beside a record; a failed rollout may have none."""
    return record.get("outcome") == "succeeded" and bool(record.get("model_calls"))


def unreadable_alarm(batch_id: str, members: Sequence[str], why: str) -> Alarm:
    """Return the alarm about results of a batch that are delivered without their tokens."""
    return Alarm(
        kind=AlarmKind.UNREADABLE_RESULT,
        batch_id=batch_id,
        rollouts=tuple(f"{batch_id}:{member}" for member in members[:SHOWN]),
        message=f"batch {batch_id}: results cannot be read and are delivered without tokens ({why}). Do api and "
        "workers use the same data directory? A requeue of result_unreadable runs them again",
    )


def _body(row: bytes | None) -> bytes:
    return (row or b"").partition(b"\n")[2]


def _why(error: Exception) -> str:
    return error.message if isinstance(error, ResultUnreadable) else f"its trajectory is damaged: {reason(error)}"


def _readable(record: bytes | None) -> bytes | None:
    """Return a record that is a JSON object, `None` for anything else."""
    if record is None:
        return None
    try:
        read_object(record)
    except DECODE_ERRORS as error:
        complain("record", record[:40], error)
        return None
    return record


def _unreadable_because(packed: bytes | ResultUnreadable | None) -> str:
    if isinstance(packed, ResultUnreadable):
        return packed.message
    try:
        segments = unpack_trajectory(packed or b"")["segments"]
        return "" if isinstance(segments, list) else "its trajectory has no segments"
    except DECODE_ERRORS as error:
        return _why(error)


def head_of(row: bytes | None) -> tuple[str, str]:
    """Return (task id, environment) of a stored row, empty texts if it cannot be read."""
    try:
        _samples, environment, _published, task_id = (row or b"").partition(b"\n")[0].decode().split(" ")
    except DECODE_ERRORS as error:
        complain("row", (row or b"")[:40], error)
        return "", ""
    return task_id, environment


def read_tries(lines: bytes | None) -> list[Any]:
    """Return the failed attempts of a rollout; an unreadable one becomes an `internal` failure that says so."""
    found: list[Any] = []
    for number, line in enumerate((lines or b"").splitlines(), 1):
        if not line:
            continue
        try:
            found.append(read_object(line))
        except DECODE_ERRORS:
            message = "the stored record of this attempt cannot be read"
            found.append(failed_attempt(number, None, ErrorKind.INTERNAL, message, retryable=True))
    return found


def _made_record(rollout: RolloutRef, run: str, entry: LogEntry, facts: _Facts) -> bytes:
    """Return the record of a rollout that no worker ended, or whose record is damaged."""
    task_id, environment = head_of(facts.row)
    known = identity(rollout, run=run, task_id=task_id, environment=environment)
    attempts = read_tries(facts.tries)
    try:
        return _farm_made(known, entry[1], attempts).as_json()
    except DECODE_ERRORS as error:
        return orjson.dumps(_damaged(known, entry, facts, attempts, error).as_dict() | {"trajectory": None})


def _farm_made(known: RolloutIdentity, fields: dict[bytes, bytes], attempts: list[Any]) -> RolloutResult:
    """Return the result of a rollout that the ledger ended. Raises a decode error."""
    return RolloutResult(
        **known,
        attempt=int(fields[b"a"]),
        outcome=fields[b"o"].decode(),
        stop_reason=fields[b"s"].decode(),
        error={**read_object(fields[b"e"]), "attempts": attempts} if fields[b"e"] else None,
        finished_at=rfc3339(int(fields[b"t"])),
    )


def _damaged(
    known: RolloutIdentity, entry: LogEntry, facts: _Facts, attempts: list[Any], error: Exception
) -> RolloutResult:
    message = "its record is damaged" if b"j" in entry[1] else f"its record is damaged: {reason(error)}"
    return RolloutResult(
        **known,
        attempt=attempt_of(facts.done) or len(attempts) + 1,
        outcome=Outcome.FAILED,
        stop_reason=StopReason.ERROR,
        error=ResultFailure(
            kind=ErrorKind.RESULT_UNREADABLE,
            stage=Stage.COMMIT,
            message=message,
            retryable=True,
            attempts=attempts,
        ),
        finished_at=rfc3339(int(entry[0].split(b"-")[0])),
    )


def _dropped(mark: bytes) -> JsonObject:
    """Return the mark of a dropped trajectory."""
    reason_text, _, moment = mark.decode().partition("|")
    return {"reason": reason_text, "at": rfc3339(int(moment))}
