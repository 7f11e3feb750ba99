"""Audit of a batch's contents, counted by one script at one moment, and the search for rollouts without an owner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from redis.exceptions import ResponseError

from gym.rollout import Ledger
from gym.state.ledger.cancellation import read_stop
from gym.state.redis.store import ADOPT, AUDIT, PUT_ASIDE, ScriptCall, Store
from gym.state.redis.unreadable import DECODE_ERRORS, concerns_redis, printable

MOST_LIVE = 2000
MOST_BACKLOG = 500
SEARCHED_PER_STEP = 500
AT_ONCE = 4
"""Batches counted in one round trip: Redis may run all that a client has sent before it turns to another one."""

FIRST_STEPS = 20
"""Of a search for what nothing holds, before the rest is left to further steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerShare:
    """Rollouts of a batch that a worker holds. `member` has run longest, since a time in ms; 0 if none runs."""

    worker: str
    rollouts: int
    member: str
    since: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """Contents of a batch at one moment, atomically. Times in ms of the server's clock.

    `backlog_rollouts`, including parked ones, is `None` if they are too many to be counted, or are being published or
    stopped. It may exceed the queued ones, since cancelled rollouts stay in the backlog until they are met. If too many
    are live, `states` (dispatched, running, judging) is `None`, and `owners` is a part of them that differs from call
    to call.
    """

    batch_id: str
    now: int
    ledger: Ledger
    dispatched: int
    fence: int
    stopping: bool
    retries: int
    retries_due: int
    backlog_entries: int
    backlog_rollouts: int | None
    live: int
    done: int
    states: tuple[int, int, int] | None
    owners: tuple[WorkerShare, ...]
    cursor: str


@dataclass(frozen=True, slots=True)
class Search:
    """Progress of a search: the members queued again, and the position to continue from, `None` at the end."""

    members: tuple[str, ...]
    goes_on_at: str | None


class Audits:
    """Counts batches, many in one round trip."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.unreadable: dict[str, Exception] = {}
        """Batches that the last `count` left out, and why."""

    async def count(self, cursors: Mapping[str, str]) -> list[Holdings]:
        """Return the contents of these batches; the cursors are those of their last count, "0" at first."""
        calls = [
            ScriptCall(AUDIT, self._store.keys.batch(batch_id).scripted(), [cursor, MOST_LIVE, MOST_BACKLOG])
            for batch_id, cursor in cursors.items()
        ]
        answers: list[Any] = []
        for first in range(0, len(calls), AT_ONCE):
            answers += await self._store.run_many(calls[first : first + AT_ONCE])
        found = []
        self.unreadable = {}
        for batch_id, answer in zip(cursors, answers, strict=True):
            if isinstance(answer, Exception) and concerns_redis(answer):
                raise answer
            try:
                if isinstance(answer, Exception):
                    raise answer
                found.append(_read(batch_id, answer))
            except (*DECODE_ERRORS, ResponseError) as error:
                self.unreadable[batch_id] = error
        return found

    async def put_aside(self, batch_id: str) -> list[tuple[str, str]]:
        """Remove live values that cannot be read, in bounded steps; return each member with its value.

        Nothing holds such a rollout then, so `adopt` queues it again.
        """
        keys = self._store.keys.batch(batch_id)
        found: list[tuple[str, str]] = []
        cursor = b"0"
        while True:
            cursor, *pairs = await self._store.run(PUT_ASIDE, keys.scripted(), [cursor, MOST_LIVE])
            found += [
                (printable(member), printable(value)) for member, value in zip(pairs[::2], pairs[1::2], strict=True)
            ]
            if cursor == b"0":
                return found

    async def adopt(self, batch_id: str) -> Search | None:
        """Queue rollouts without an owner again, within a few steps; `None` if the batch is too large to search.

        A member is looked up and queued by the same script, so none can be queued twice.
        """
        found: tuple[str, ...] = ()
        at = "0:0"
        for _ in range(FIRST_STEPS):
            step = await self.adopt_step(batch_id, at)
            if step is None:
                return None
            found += step.members
            if step.goes_on_at is None:
                return Search(found, None)
            at = step.goes_on_at
        return Search(found, at)

    async def adopt_step(self, batch_id: str, at: str) -> Search | None:
        """Run one step of `adopt`, from a row and sample on."""
        keys = self._store.keys.batch(batch_id)
        rows = int(await self._store.redis.get(keys.seq) or 0)
        answer = await self._store.run(ADOPT, keys.scripted(), [*at.split(":"), rows, SEARCHED_PER_STEP, MOST_LIVE])
        if answer == -1:
            return None
        row, sample, *members = answer
        return Search(tuple(member.decode() for member in members), f"{row}:{sample}" if row < rows else None)


def _read(batch_id: str, answer: list[Any]) -> Holdings:
    now, counters, retries, due, entries, rollouts, live, done, cursor, states, owned = answer
    submitted, queued, dispatched, running, judging, succeeded, failed, cancelled, expired, fence = map(
        int, counters[:10]
    )
    return Holdings(
        batch_id=batch_id,
        now=int(now),
        ledger=Ledger(
            submitted=submitted,
            queued=queued,
            running=running,
            judging=judging,
            succeeded=succeeded,
            failed=failed,
            cancelled=cancelled,
            expired=expired,
        ),
        dispatched=dispatched,
        fence=fence,
        stopping=read_stop(counters[10]) is not None,
        retries=retries,
        retries_due=due,
        backlog_entries=entries,
        backlog_rollouts=None if rollouts < 0 else rollouts,
        live=live,
        done=done,
        states=(states[0], states[1], states[2]) if states else None,
        owners=tuple(
            WorkerShare(
                worker=owned[i].decode(), rollouts=owned[i + 1], since=int(owned[i + 2]), member=owned[i + 3].decode()
            )
            for i in range(0, len(owned), 4)
        ),
        cursor=cursor.decode(),
    )
