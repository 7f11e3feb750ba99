"""Quarantine of batches that the dispatcher cannot read or work on, so that one never stops the others.

Invariant: an error that concerns a single batch ends at `guard`; one that concerns Redis as a whole passes through.
A batch is tried again after a pause that doubles, and its alarm is cleared when it has gone well for a while.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass

from gym.state.alarms import Alarm, AlarmKind, Alarms
from gym.state.redis.store import Store
from gym.state.redis.unreadable import concerns_redis, printable, reason

FIRST_PAUSE_S = 5.0
LONGEST_PAUSE_S = 60.0
TRIAL_S = 10.0
_LOG = logging.getLogger(__name__)


@dataclass(slots=True)
class _Aside:
    """A batch in quarantine: the length of its pause, and when it counts as sound again."""

    why: str
    pause_s: float
    until: float
    well_at: float | None = None


class Quarantine:
    """The quarantine of one dispatcher; `clock` is any steady clock."""

    def __init__(self, store: Store, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._alarms = Alarms(store)
        self._clock = clock
        self._aside: dict[str, _Aside] = {}

    @asynccontextmanager
    async def guard(self, batch_id: str, doing: str) -> AsyncIterator[None]:
        """Put the batch in quarantine if the block fails because of it. Raises errors that concern Redis as a whole."""
        try:
            yield
        except Exception as error:
            if concerns_redis(error):
                raise
            await self.put_aside(batch_id, f"{doing}: {reason(error)}", error)

    async def put_aside(self, batch_id: str, why: str, error: BaseException | None = None) -> None:
        """Put the batch in quarantine for a while, and raise an alarm that gives the reason."""
        known = self._aside.get(batch_id)
        pause_s = FIRST_PAUSE_S if known is None else min(LONGEST_PAUSE_S, 2 * known.pause_s)
        self._aside[batch_id] = _Aside(why, pause_s, self._clock() + pause_s)
        alarm = _alarm(batch_id, why)
        if await self._alarms.raise_alarm(alarm) or known is None:
            _LOG.error("%s", alarm.message, exc_info=error, extra={"action": alarm.kind.value, "batch_id": batch_id})

    def holds(self, batch_id: str) -> bool:
        """Return whether the batch is in quarantine; one whose pause is over is on trial from now on."""
        aside = self._aside.get(batch_id)
        if aside is None:
            return False
        now = self._clock()
        if now < aside.until:
            return True
        aside.well_at = aside.well_at or now + TRIAL_S
        return False

    async def release(self, active: Collection[str]) -> None:
        """Clear the alarms of batches that have passed their trial, or that no longer exist."""
        now = self._clock()
        for batch_id, aside in list(self._aside.items()):
            well = aside.well_at is not None and now >= aside.well_at
            if well or batch_id not in active:
                del self._aside[batch_id]
                await self._alarms.clear(_alarm(batch_id, "").name)
                _LOG.info("batch %s goes on", printable(batch_id), extra={"action": "quarantine_ended"})

    async def take_over(self) -> None:
        """Clear the alarms of an earlier dispatcher; faults that persist are found again at once."""
        self._aside.clear()
        for name in await self._alarms.standing():
            if name.kind == AlarmKind.UNREADABLE_BATCH:
                await self._alarms.clear(name)


def _alarm(batch_id: str, why: str) -> Alarm:
    return Alarm(
        kind=AlarmKind.UNREADABLE_BATCH,
        batch_id=batch_id,
        message=f"batch {printable(batch_id)} is set aside, others go on: {why}; it is tried again from time to time. "
        f"Repair what is stored, or cancel the batch",
    )
