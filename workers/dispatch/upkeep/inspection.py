"""Search for unreadable stored values: states of rollouts, which are repaired, and records of the whole farm.

Invariant: nothing is deleted but the state of a rollout, which the audit then queues again. An unreadable record
stays until its owner replaces it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

from gym.policy import PolicySpec
from gym.state.alarms import Alarm, AlarmKind, AlarmName
from gym.state.ledger.breakers import read_breaker
from gym.state.redis.driver import ResponseError
from gym.state.redis.store import Store
from gym.state.redis.unreadable import DECODE_ERRORS, concerns_redis, printable, read_object, reason
from gym.state.repair.audit import Audits, Holdings
from gym.state.replicas import read_replica

SHOWN = 20
STANDS_S = 60.0
BIG_AGAIN_S = 30.0
_LOG = logging.getLogger(__name__)


class LiveRepair:
    """Removal of unreadable rollout states; one per auditor."""

    def __init__(self, store: Store) -> None:
        self._audits = Audits(store)
        self._stands_until: dict[AlarmName, float] = {}
        self._look_again_at: dict[str, float] = {}

    async def look(self, held: Holdings, now: float) -> list[Alarm]:
        """Return an alarm if states were removed from a batch whose counts say that some may be unreadable.

        A batch with too many rollouts under way to be counted is looked through from time to time.
        """
        counted = (held.dispatched, held.ledger.running, held.ledger.judging)
        if held.states is None:
            if now < self._look_again_at.setdefault(held.batch_id, now + BIG_AGAIN_S):
                return []
            self._look_again_at[held.batch_id] = now + BIG_AGAIN_S
        elif held.states == counted:
            return []
        aside = await self._audits.put_aside(held.batch_id)
        if not aside:
            return []
        member, value = aside[0]
        alarm = Alarm(
            kind=AlarmKind.UNREADABLE_ROLLOUT,
            batch_id=held.batch_id,
            rollouts=tuple(f"{held.batch_id}:{name}" for name, _ in aside[:SHOWN]),
            message=f"batch {held.batch_id}: the state of {len(aside)} rollouts could not be read "
            f"({member}: {value!r}); they are queued again",
        )
        self._stands_until[alarm.name] = now + STANDS_S
        return [alarm]

    def standing(self, now: float) -> set[AlarmName]:
        """Return the names of alarms that have not lasted long enough to be seen."""
        self._stands_until = {name: until for name, until in self._stands_until.items() if until > now}
        return set(self._stands_until)


class Inspection:
    """Reader of the records of the whole farm that finds those which no process can read."""

    def __init__(self, store: Store) -> None:
        self._store = store
        keys = store.keys
        self._records: tuple[tuple[str, str, Callable[[bytes, bytes], object]], ...] = (
            ("worker", keys.worker_info, lambda _, text: read_object(text)),
            ("breaker", keys.breakers, read_breaker),
            ("policy", keys.policies, lambda _, text: PolicySpec.model_validate(read_object(text))),
            ("version of policy", keys.policies_version, lambda _, text: int(text)),
            ("replica", keys.judge_replica_info, lambda _, text: read_replica(text)),
            ("virtual time of run", keys.share, lambda _, text: _finite(text)),
            (
                "alarm",
                keys.alarms_standing,
                lambda name, text: (AlarmName.parse(name.decode()), read_object(text)["kind"]),
            ),
        )

    async def alarms(self) -> list[Alarm]:
        """Return an alarm for all records together, and one for messages of the broker, if there are any."""
        found = []
        for what, key, read in self._records:
            found += await self._unreadable(what, key, read)
        alarms = []
        if found:
            more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
            message = (
                f"records are passed over since they cannot be read: {'; '.join(found[:SHOWN])}{more}. Put them again"
            )
            alarms.append(Alarm(kind=AlarmKind.UNREADABLE_RECORD, message=message))
        return [*alarms, *await self._messages()]

    async def _unreadable(self, what: str, key: str, read: Callable[[bytes, bytes], object]) -> list[str]:
        try:
            stored = await self._store.redis.hgetall(key)
        except ResponseError as error:
            if concerns_redis(error):
                raise
            return [f"all of {key}: {reason(error)}"]
        found = []
        for name, text in stored.items():
            try:
                name.decode()
                read(name, text)
            except DECODE_ERRORS as error:
                found.append(f"{what} {printable(name)}: {reason(error)}")
        return found

    async def _messages(self) -> list[Alarm]:
        newest = await self._store.redis.lindex(self._store.keys.unreadable_messages, 0)
        if newest is None:
            return []
        said = read_object(newest)
        message = (
            f"messages of the broker that are no jobs were set aside, the last from {said['queue']}: {said['reason']}. "
            f"They lie in {self._store.keys.unreadable_messages}; see what else writes to the broker"
        )
        return [Alarm(kind=AlarmKind.UNREADABLE_MESSAGE, message=message)]


def _finite(text: bytes) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{value} is no time")
    return value
