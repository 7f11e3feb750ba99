"""Registry of environment sessions, and the calls that travel to the workers which hold them.

A session lives in one worker process. Its record expires a while after the session; the zsets of all sessions and of an
owner's are swept when they are read. A call is a list entry for that worker, its answer a list entry for the calling
api process. So an api process may come and go while sessions stay.

Invariant: a call is taken by its worker at most once. A worker that dies takes its sessions and their calls with it,
which shows in its lease.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from gym.errors import NotFound, Overloaded
from gym.jsontypes import JsonObject
from gym.plain import exact_json
from gym.state.assignments import SessionAssignment
from gym.state.redis.store import Store, load_script
from gym.state.redis.unreadable import read_object, read_or_none

CALLS_TTL_S = 120
RECORD_GRACE_S = 60
TAKE_MOST = 64
_LOG = logging.getLogger(__name__)


_OPEN = load_script("session_open", of_batch=False)
_TOUCH = load_script("session_touch", of_batch=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRecord:
    """A session's record; times in ms of the server's clock. `owner` is a digest of the key, or empty.

    `digest` tells one request for a session from another with the same id.
    """

    session_id: str
    worker: str
    environment: str
    owner: str
    digest: str
    created_at: int
    expires_at: int


class Sessions:
    """The registry, and both ends of the calls."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def enter(
        self, session_id: str, *, worker: str, environment: str, owner: str, digest: str, most: int, idle_s: float
    ) -> SessionRecord | None:
        """Register a session before it is created; return None if the id is taken.

        Raises Overloaded if its owner has `most` already.
        """
        keys = self._store.keys
        verdict, count, now = await self._store.run(
            _OPEN,
            [keys.session(session_id), keys.sessions, keys.sessions_of(owner)],
            [session_id, worker, environment, owner, most, int(idle_s * 1000), RECORD_GRACE_S * 1000, digest],
        )
        if verdict == b"full":
            raise Overloaded(
                "too_many_sessions",
                f"{count} sessions are open with this key, and sessions.max_per_key is {most}; close some, or wait "
                "until idle ones expire",
                {"open": count, "limit": most},
                retry_after_s=1,
            )
        if verdict == b"taken":
            return None
        return SessionRecord(
            session_id=session_id,
            worker=worker,
            environment=environment,
            owner=owner,
            digest=digest,
            created_at=now,
            expires_at=now + int(idle_s * 1000),
        )

    async def get(self, session_id: str) -> SessionRecord:
        """Return a session. Raises NotFound."""
        values = await self._store.redis.hgetall(self._store.keys.session(session_id))
        record = read_or_none("session", session_id, _record, session_id, values) if values else None
        if record is None:
            raise session_not_found(session_id)
        return record

    async def touch(self, record: SessionRecord, *, idle_s: float) -> int | None:
        """Extend a session that was used; return its expiry in ms, or `None` if its record is gone."""
        keys = self._store.keys
        expires_at = await self._store.run(
            _TOUCH,
            [keys.session(record.session_id), keys.sessions, keys.sessions_of(record.owner)],
            [record.session_id, int(idle_s * 1000), RECORD_GRACE_S * 1000],
        )
        return int(expires_at) or None

    async def lost(self, records: Sequence[SessionRecord]) -> list[SessionRecord]:
        """Return those of a worker's sessions that have no record, or another worker's."""
        pipeline = self._store.redis.pipeline(transaction=False)
        for record in records:
            pipeline.hget(self._store.keys.session(record.session_id), "worker")
        found = await pipeline.execute() if records else []
        return [record for record, worker in zip(records, found, strict=True) if worker != record.worker.encode()]

    async def strike(self, records: Sequence[SessionRecord | SessionAssignment]) -> None:
        """Delete the records of ended sessions."""
        keys = self._store.keys
        pipeline = self._store.redis.pipeline(transaction=False)
        for record in records:
            pipeline.delete(keys.session(record.session_id))
            pipeline.zrem(keys.sessions, record.session_id)
            pipeline.zrem(keys.sessions_of(record.owner), record.session_id)
        await pipeline.execute()

    async def page(self, *, after: str | None, limit: int) -> tuple[list[SessionRecord], str | None]:
        """Return open sessions, first to expire first, and the cursor of the next page or None."""
        redis, keys = self._store.redis, self._store.keys
        now = await self._store.now_ms()
        await redis.zremrangebyscore(keys.sessions, "-inf", now - RECORD_GRACE_S * 1000)
        first = 0
        if after is not None:
            rank = await redis.zrank(keys.sessions, after)
            first = 0 if rank is None else int(rank) + 1
        names = [
            name.decode(errors="backslashreplace")
            for name in await redis.zrange(keys.sessions, first, first + limit - 1)
        ]
        pipeline = redis.pipeline(transaction=False)
        for name in names:
            pipeline.hgetall(keys.session(name))
        found = await pipeline.execute(raise_on_error=False) if names else []
        read = [
            read_or_none("session", name, _record, name, values)
            for name, values in zip(names, found, strict=True)
            if values and not isinstance(values, Exception)
        ]
        records = [record for record in read if record is not None]
        return records, names[-1] if len(names) == limit else None

    async def call(self, worker: str, call: JsonObject) -> None:
        """Send a call to the worker that holds the session."""
        key = self._store.keys.session_calls(worker)
        pipeline = self._store.redis.pipeline(transaction=False)
        pipeline.rpush(key, exact_json.dumps(call))
        pipeline.expire(key, CALLS_TTL_S)
        await pipeline.execute()

    async def calls(self, worker: str, *, wait_s: float) -> list[JsonObject]:
        """Return the next calls for a worker, empty after `wait_s`."""
        return await self._taken(self._store.keys.session_calls(worker), wait_s)

    async def answer(self, asker: str, answers: Sequence[JsonObject]) -> None:
        """Send answers to the calling processes. Raises TypeError or ValueError for values that JSON cannot hold."""
        key = self._store.keys.session_answers(asker)
        pipeline = self._store.redis.pipeline(transaction=False)
        pipeline.rpush(key, *map(exact_json.dumps, answers))
        pipeline.expire(key, CALLS_TTL_S)
        await pipeline.execute()

    async def answers(self, asker: str, *, wait_s: float) -> list[JsonObject]:
        """Return the next answers for a process, empty after `wait_s`."""
        return await self._taken(self._store.keys.session_answers(asker), wait_s)

    async def _taken(self, key: str, wait_s: float) -> list[JsonObject]:
        redis = self._store.redis
        first = await redis.blpop([key], timeout=wait_s)
        if first is None:
            return []
        more = await redis.lpop(key, TAKE_MOST) or []
        read = [read_or_none("call of a session", key, read_object, text) for text in (first[1], *more)]
        return [each for each in read if each is not None]


def session_not_found(session_id: str) -> NotFound:
    """Return the error for a session that does not exist (any more)."""
    return NotFound(
        "session_not_found",
        f"there is no session {session_id[:200]!r}: it was closed, it expired, or the worker that held it has ended; "
        "open a new one",
        {"session_id": session_id[:200]},
    )


def _read(text: bytes) -> JsonObject | None:
    """Return an entry of a list, None for anything but a JSON object, which is dropped."""
    try:
        read = exact_json.loads(text)
    except ValueError as error:
        _LOG.warning("a session entry is not JSON: %s", error, extra={"action": "session_unreadable"})
        return None
    return read if isinstance(read, dict) else None


def _record(session_id: str, values: dict[bytes, bytes]) -> SessionRecord:
    return SessionRecord(
        session_id=session_id,
        worker=values[b"worker"].decode(),
        environment=values[b"environment"].decode(),
        owner=values[b"owner"].decode(),
        digest=values[b"digest"].decode(),
        created_at=int(values[b"created_at"]),
        expires_at=int(values[b"expires_at"]),
    )
