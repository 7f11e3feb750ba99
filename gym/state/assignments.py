"""Reconciliation of the rollouts assigned in Redis with those that workers hold.

A worker that has ended a rollout and a Redis that lost its last writes disagree on its owner. So the dispatcher sends
each worker its assignments, several times within a lease; the worker hands back those that it does not know.

Invariant: a hand-back names attempt and fencing token. So a claim, commit or hand-back under way, or an outdated list,
is never mistaken for a loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import orjson

from gym.state.redis.store import Argument, ScriptCall, Store, load_script

PAGE = 500
MOST_AT_ONCE = 50  # scripts in one round trip
MOST_TOLD = 10_000
TOLD_TTL_S = 60
HAND_BACK_AT_ONCE = 100

_ASSIGNED = load_script("assigned")
_UNHELD = load_script("unheld")


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """A rollout that is with a worker or a judge worker; `since` in ms of the server's clock."""

    batch_id: str
    member: str
    attempt: int
    token: str
    worker: str
    since: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionAssignment:
    """An environment session that is with a worker; `owner` as in its record."""

    session_id: str
    worker: str
    owner: str


@dataclass(frozen=True, slots=True)
class Told:
    """Assignments that a worker was sent."""

    rollouts: tuple[Assignment, ...] = ()
    sessions: tuple[SessionAssignment, ...] = ()


class Assignments:
    """Both ends of the reconciliation, and the script that takes rollouts back."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def of_batches(self, batch_ids: Iterable[str]) -> list[Assignment]:
        """Return the rollouts that workers hold, in bounded steps; they may have changed meanwhile."""
        cursors = dict.fromkeys(batch_ids, "0")
        found: dict[tuple[str, str], Assignment] = {}
        while cursors:
            chosen = list(cursors)[:MOST_AT_ONCE]
            calls = [
                ScriptCall(_ASSIGNED, self._store.keys.batch(name).scripted(), [cursors[name], PAGE]) for name in chosen
            ]
            for name, answer in zip(chosen, await self._store.run_many(calls), strict=True):
                if isinstance(answer, Exception):
                    raise answer
                cursor, flat = answer[0].decode(), answer[1]
                for i in range(0, len(flat), 5):
                    member, attempt, token, since, worker = flat[i : i + 5]
                    found[name, member.decode()] = Assignment(
                        batch_id=name,
                        member=member.decode(),
                        attempt=int(attempt),
                        token=token.decode(),
                        worker=worker.decode(),
                        since=int(since),
                    )
                if cursor == "0":
                    del cursors[name]
                else:
                    cursors[name] = cursor
        return list(found.values())

    async def of_sessions(self) -> list[SessionAssignment]:
        """Return every environment session that has a worker, in bounded steps."""
        redis, keys = self._store.redis, self._store.keys
        found: list[SessionAssignment] = []
        first = 0
        while names := [name.decode() for name in await redis.zrange(keys.sessions, first, first + PAGE - 1)]:
            first += len(names)
            pipeline = redis.pipeline(transaction=False)
            for name in names:
                pipeline.hmget(keys.session(name), ["worker", "owner"])
            for name, (worker, owner) in zip(names, await pipeline.execute(), strict=True):
                if worker is not None:
                    owned = SessionAssignment(session_id=name, worker=worker.decode(), owner=(owner or b"").decode())
                    found.append(owned)
        return found

    async def tell(
        self, rollouts: Mapping[str, Sequence[Assignment]], sessions: Mapping[str, Sequence[SessionAssignment]]
    ) -> None:
        """Send each worker its assignments."""
        pipeline = self._store.redis.pipeline(transaction=False)
        for worker in rollouts.keys() | sessions.keys():
            told = {
                "rollouts": [
                    [each.batch_id, each.member, each.attempt, each.token, each.since]
                    for each in rollouts.get(worker, ())[:MOST_TOLD]
                ],
                "sessions": [[each.session_id, each.owner] for each in sessions.get(worker, ())[:MOST_TOLD]],
            }
            pipeline.set(self._store.keys.assigned(worker), orjson.dumps(told), ex=TOLD_TTL_S)
        await pipeline.execute()

    async def told(self, worker: str) -> Told | None:
        """Return the assignments sent to a worker since its last call, `None` if there are none."""
        text = await self._store.redis.getdel(self._store.keys.assigned(worker))
        if text is None:
            return None
        told = orjson.loads(text)
        return Told(
            rollouts=tuple(
                Assignment(batch_id=batch, member=member, attempt=attempt, token=token, since=since, worker=worker)
                for batch, member, attempt, token, since in told["rollouts"]
            ),
            sessions=tuple(
                SessionAssignment(session_id=name, worker=worker, owner=owner) for name, owner in told["sessions"]
            ),
        )

    def take_back_calls(
        self, assignments: Sequence[Assignment], *, max_attempts: int, message: str
    ) -> list[ScriptCall]:
        """Return the script calls that queue these again, all of one batch and worker.

        Each answers {again, failed}.
        """
        calls = []
        for first in range(0, len(assignments), HAND_BACK_AT_ONCE):
            part = assignments[first : first + HAND_BACK_AT_ONCE]
            args: list[Argument] = [part[0].worker, max_attempts, message]
            for each in part:
                args += [each.member, each.attempt, each.token]
            calls.append(ScriptCall(_UNHELD, self._store.keys.batch(part[0].batch_id).scripted(), args))
        return calls
