"""Claims whose stored values cannot be read: they end as failed, and the rest of their slice runs.

Invariant: a claim that Redis has made is either handed to its worker or ended here; none stays with a worker that does
not know it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import orjson

from gym.errors import ErrorKind, Stage
from gym.state.alarms import Alarm, AlarmKind, Alarms
from gym.state.redis.store import END_UNREADABLE, ScriptCall, Store
from gym.state.redis.unreadable import DECODE_ERRORS, printable, reason

T = TypeVar("T")
SHOWN = 20
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimedItem(Generic[T]):
    """A claim as Redis answered it, and the function that decodes it."""

    member: bytes
    attempt: bytes
    token: bytes
    read: Callable[[], T]


async def readable_claims(
    store: Store, batch_id: str, items: Sequence[ClaimedItem[T]], *, kind: ErrorKind, stage: Stage
) -> list[T]:
    """Return the readable claims; the others are ended as failed with this error kind, and raise an alarm."""
    claims: list[T] = []
    calls: list[ScriptCall] = []
    failed: dict[str, str] = {}
    keys = store.keys.batch(batch_id).scripted()
    for item in items:
        try:
            claims.append(item.read())
        except DECODE_ERRORS as error:
            why = f"its stored state cannot be read: {reason(error)}"
            failed[printable(item.member)] = why
            text = orjson.dumps({"kind": kind, "stage": stage, "message": why, "retryable": False})
            calls.append(ScriptCall(END_UNREADABLE, keys, [item.member, item.attempt, item.token, text]))
    if calls:
        for answer in await store.run_many(calls):
            if isinstance(answer, Exception):
                raise answer
        await _raise_alarm(store, batch_id, failed)
    return claims


async def _raise_alarm(store: Store, batch_id: str, failed: dict[str, str]) -> None:
    member, why = next(iter(failed.items()))
    alarm = Alarm(
        kind=AlarmKind.UNREADABLE_RESULT,
        batch_id=batch_id,
        rollouts=tuple(f"{batch_id}:{name}" for name in list(failed)[:SHOWN]),
        message=f"batch {batch_id}: {len(failed)} rollouts were ended as failed ({member}: {why})",
    )
    if await Alarms(store).raise_alarm(alarm):
        _LOG.error("%s", alarm.message, extra={"action": alarm.kind.value, "batch_id": batch_id})
