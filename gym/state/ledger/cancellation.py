"""Cancellation in bounded steps: a script marks the rollouts to end and ends the first ones, further calls the rest.

Invariant: from the first call on no marked rollout starts. The mark is in Redis, so any process may continue. A
cancellation that arrives before its batch or rollout leaves a tombstone; their number is bounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from gym.errors import Overloaded
from gym.rollout import Outcome
from gym.state.redis.encodings import OUTCOME_LETTER
from gym.state.redis.store import CANCEL, STOP_STEP, Argument, Store

STEP_ROLLOUTS = 200
"""Rollouts that one script call looks at: one or two milliseconds of Redis's time."""

MOST_TOMBSTONES = 10_000
"""Per batch, and the number of batches that have tombstones before they exist."""

TOMBSTONE_S = 86_400
Scope = Literal["batch", "group", "rollout"]


class StopCause(StrEnum):
    """Reason for which all of a batch is being ended, as the `stop_reason` of its results."""

    CANCELLED = "cancelled"
    DEADLINE = "deadline"

    @property
    def outcome(self) -> Outcome:
        return Outcome.CANCELLED if self is StopCause.CANCELLED else Outcome.EXPIRED


_FLAGS = {b"0": None, b"1": StopCause.CANCELLED, b"2": StopCause.DEADLINE}


def read_stop(flag: bytes | None) -> StopCause | None:
    """Return why a batch is being ended, from `cancel` of its `meta`. Raises a decode error."""
    return None if flag is None else _FLAGS[flag]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancellation:
    """Progress of a cancellation.

    `known` is false if a tombstone was left. `stopped` counts the rollouts that this call ended, `left` those still to
    be ended. Without `more_now`, a further call at once would find nothing to do.
    """

    known: bool
    stopped: int
    left: int = 0
    more_now: bool = False
    no_such_sample: bool = False


async def cancel(
    store: Store,
    batch_id: str,
    scope: Scope,
    name: str,
    *,
    cause: StopCause = StopCause.CANCELLED,
    go_on: bool = False,
) -> Cancellation:
    """Begin to end unfinished rollouts. A batch that is being cancelled already is left alone unless `go_on`.

    Raises Overloaded if there are too many tombstones.
    """
    keys = store.keys.batch(batch_id)
    args: list[Argument] = [
        scope,
        name,
        OUTCOME_LETTER[cause.outcome],
        cause,
        STEP_ROLLOUTS,
        int(go_on),
        MOST_TOMBSTONES,
    ]
    known, stopped, left, more_now = await store.run(CANCEL, keys.scripted(), args)
    if known == 0:
        await _enter_tombstone(store, batch_id)
    elif known == -2:
        raise _too_many_tombstones()
    return Cancellation(
        known=known == 1, stopped=stopped, left=left, more_now=bool(more_now), no_such_sample=known == -1
    )


async def step_stops(store: Store, batch_id: str) -> int:
    """End a further part of the batch's groups that are being stopped; return the number of groups left."""
    _stopped, left, _ended = await store.run(STOP_STEP, store.keys.batch(batch_id).scripted(), [STEP_ROLLOUTS])
    return int(left)


async def _enter_tombstone(store: Store, batch_id: str) -> None:
    """Register a batch that has tombstones before it exists.

    Beyond the limit they are removed again, and Overloaded is raised.
    """
    redis, keys = store.redis, store.keys
    if await redis.exists(keys.batch(batch_id).meta):
        return
    now = await store.now_ms()
    await redis.zremrangebyscore(keys.tombstoned, "-inf", now)
    if await redis.zcard(keys.tombstoned) >= MOST_TOMBSTONES and await redis.zscore(keys.tombstoned, batch_id) is None:
        await redis.unlink(keys.batch(batch_id).tombs)
        raise _too_many_tombstones()
    await store.insist(keys.tombstoned, "ZADD", now + TOMBSTONE_S * 1000, batch_id)


def _too_many_tombstones() -> Overloaded:
    return Overloaded(
        "too_many_tombstones",
        f"{MOST_TOMBSTONES} cancellations wait for batches that do not exist yet; submit first, then cancel",
        {"limit": MOST_TOMBSTONES},
        retry_after_s=60,
    )
