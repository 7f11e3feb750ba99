"""Alarms: the problems that stand now, and a capped log of raised and cleared ones."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import orjson

from gym.jsontypes import JsonObject
from gym.state.redis.store import ALARM, Store
from gym.state.redis.unreadable import read_or_none

MOST_LOGGED = 1000


class AlarmKind(StrEnum):
    """Kind of a problem."""

    LEDGER_IMBALANCE = "ledger_imbalance"  # a batch's counters contradict its contents; they are recounted
    NO_OWNER = "no_owner"  # rollouts without any owner; they are queued again
    NO_PROGRESS = "no_progress"  # work and free slots, or a rollout beyond its limits: sent again, or taken back
    REDIS_EVICTS = "redis_evicts"  # its maxmemory-policy was changed to one that drops keys
    REDIS_FULL = "redis_full"  # at maxmemory: submissions are refused
    UNREADABLE_BATCH = "unreadable_batch"  # quarantined by the dispatcher: its stored state cannot be read
    UNREADABLE_ROLLOUT = "unreadable_rollout"  # its state could not be read; it was removed and is queued again
    UNREADABLE_RESULT = "unreadable_result"  # its stored result is missing or damaged
    UNREADABLE_RECORD = "unreadable_record"  # a policy, breaker, worker, replica or alarm that readers skip
    UNREADABLE_MESSAGE = "unreadable_message"  # a broker message that is not a job


@dataclass(frozen=True, slots=True)
class AlarmName:
    """Identity of an alarm: `KIND|BATCH|WORKER` in Redis. The kind may be one that this version does not know."""

    kind: str
    batch_id: str = ""
    worker: str = ""

    def __str__(self) -> str:
        return f"{self.kind}|{self.batch_id}|{self.worker}"

    @classmethod
    def parse(cls, text: str) -> AlarmName:
        """Return the name that `str` gives. Raises a decode error."""
        kind, batch_id, worker = text.split("|", 2)
        return cls(kind, batch_id, worker)


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """A problem and its location. `batch_id` and `worker` are empty if it concerns no single one."""

    kind: AlarmKind
    message: str
    batch_id: str = ""
    worker: str = ""
    rollouts: tuple[str, ...] = ()  # the first of the affected ones

    @property
    def name(self) -> AlarmName:
        return AlarmName(str(self.kind), self.batch_id, self.worker)


class Alarms:
    """Access to alarms: the leading dispatcher raises and clears them, the api reads them."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def raise_alarm(self, alarm: Alarm) -> bool:
        """Raise an alarm and return whether it is new; one that stands already is left as it is."""
        at = await self._store.now_ms()
        text = orjson.dumps(
            {
                "kind": alarm.kind,
                "batch_id": alarm.batch_id or None,
                "worker": alarm.worker or None,
                "rollouts": alarm.rollouts,
                "message": alarm.message,
                "raised_at": at,
            }
        )
        if not await self._change("raised", alarm.name, text):
            return False
        await self._store.insist(self._store.keys.totals, "HINCRBY", f"alarm:{alarm.kind}", 1)
        return True

    async def clear(self, name: AlarmName) -> None:
        """Clear the alarm and append a `cleared` event to the log."""
        text = await self._store.redis.hget(self._store.keys.alarms_standing, str(name))
        if text is not None:
            await self._change("cleared", name, text)

    async def _change(self, event: str, name: AlarmName, text: bytes) -> bool:
        keys = self._store.keys
        return bool(
            await self._store.run(ALARM, [keys.alarms_standing, keys.alarms_log], [event, str(name), text, MOST_LOGGED])
        )

    async def standing(self) -> dict[AlarmName, JsonObject]:
        """Return the alarms that stand now, by name; those that cannot be read are left out."""
        stored = await self._store.redis.hgetall(self._store.keys.alarms_standing)
        found = {}
        for name, text in stored.items():
            alarm = read_or_none("alarm", name, _read_named, name, text)
            if alarm is not None:
                found[alarm[0]] = alarm[1]
        return found

    async def log(self, limit: int = 100) -> list[JsonObject]:
        """Return the events raised and cleared, newest first."""
        entries: list[Any] = await self._store.redis.xrevrange(self._store.keys.alarms_log, count=limit)
        found = []
        for entry, fields in entries:
            shown = read_or_none("log entry of alarms", entry, _logged, fields)
            if shown is not None:
                found.append({"id": entry.decode(), **shown})
        return found


def _read_named(name: bytes, text: bytes) -> tuple[AlarmName, JsonObject]:
    return AlarmName.parse(name.decode(errors="backslashreplace")), _read(text)


def _read(text: bytes) -> JsonObject:
    """Return a stored alarm. Raises a decode error."""
    alarm: JsonObject = orjson.loads(text)
    return {**alarm, "kind": str(alarm["kind"]), "message": str(alarm["message"])}


def _logged(fields: dict[bytes, bytes]) -> JsonObject:
    return {"event": fields[b"event"].decode(), **_read(fields[b"alarm"])}
