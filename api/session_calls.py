"""The api's side of environment sessions: placement of a session on a worker, and replies for waiting calls.

Replies come back over one Redis list for each api process. One task reads it while any call waits.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from dataclasses import dataclass
from typing import Any

from api.shutdown import Shutdown, shutting_down
from gym.config import SessionSettings
from gym.errors import Conflict, Invalid, NotFound, RequestError, Unavailable
from gym.ids import new_id
from gym.jsontypes import JsonObject
from gym.state.leases import Leases
from gym.state.ledger.submission import canonical_digest
from gym.state.redis.driver import RedisError
from gym.state.redis.store import Store, end_tasks
from gym.state.session_records import SessionRecord, Sessions, session_not_found

LISTEN_S = 2.0
AGAIN_S = 0.5
LOOK_AFTER_S = 2.0
LOADS_AGE_S = 1.0
ANSWER_S = 1.0
SPARE_S = 5.0
_LOG = logging.getLogger(__name__)
_FAULTS: dict[int, type[RequestError]] = {404: NotFound, 422: Invalid, 503: Unavailable}


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedSession:
    """A requested session; it counts against the limit of `owner`."""

    session_id: str | None
    environment: str
    row: JsonObject
    seed: int | None
    owner: str

    @property
    def digest(self) -> str:
        """Digest of the request: equal requests have equal digests."""
        return canonical_digest([self.environment, self.row, self.seed])


class SessionCalls:
    """Session calls of one api process."""

    def __init__(
        self, store: Store, leases: Leases, settings: SessionSettings, shutdown: Shutdown | None = None
    ) -> None:
        self.books = Sessions(store)
        self._shutdown = shutdown or Shutdown()
        self._leases = leases
        self._settings = settings
        self._asker = new_id("api")
        self._waiting: dict[str, asyncio.Future[JsonObject]] = {}
        self._reader: asyncio.Task[None] | None = None
        self._loads: dict[str, int] = {}
        self._able: dict[str, frozenset[str]] = {}
        self._loads_at = float("-inf")
        self._looking = asyncio.Lock()

    @property
    def waiting(self) -> int:
        """Return how many calls wait for a worker's reply."""
        return len(self._waiting)

    async def open(self, wanted: WantedSession) -> tuple[SessionRecord, JsonObject, bool]:
        """Return a session, the worker's reply, and whether it is new: the same id and body is the same session.

        Raises Overloaded, Conflict if another session has the id, Invalid, or Unavailable if no worker can hold it.
        """
        worker = await self._worker_for(wanted.environment)
        session_id = wanted.session_id or new_id("session")
        record = await self.books.enter(
            session_id,
            worker=worker,
            environment=wanted.environment,
            owner=wanted.owner,
            digest=wanted.digest,
            most=self._settings.max_per_key,
            idle_s=self._settings.idle_s,
        )
        if record is None:
            return await self._again(session_id, wanted)
        self._loads[worker] = self._loads.get(worker, 0) + 1
        try:
            call = {"do": "open", "record": dataclasses.asdict(record), "row": wanted.row, "seed": wanted.seed}
            return record, await self._ask(worker, call), True
        except BaseException:
            # it may have been created despite the error
            await self.books.call(worker, {"do": "close", "session_id": session_id, "call": "", "asker": self._asker})
            await self.books.strike([record])
            raise

    async def _again(self, session_id: str, wanted: WantedSession) -> tuple[SessionRecord, JsonObject, bool]:
        record = await self.books.get(session_id)
        if record.digest != wanted.digest:
            raise Conflict(
                "session_conflict",
                f"there is a session {session_id} for another row; close it, or open one with another id",
                {"session_id": session_id},
            )
        return record, await self._ask(record.worker, {"do": "describe", "session_id": session_id}), False

    async def ask(self, session_id: str, do: str, **fields: Any) -> JsonObject:
        """Return the reply of a session's worker. Raises NotFound, Invalid or Unavailable."""
        record = await self.books.get(session_id)
        return await self._ask(record.worker, {"do": do, "session_id": session_id, **fields})

    async def close(self) -> None:
        """Stop the reader."""
        if self._reader is not None:
            await end_tasks([self._reader])

    async def _worker_for(self, environment: str) -> str:
        """Return the live worker with the fewest sessions that knows the environment."""
        async with self._looking:
            await self._look()
        able = [worker for worker in self._loads if environment in self._able.get(worker, ())]
        if not able:
            raise Unavailable("no_worker", f"no worker that can run {environment} is up; try again", retry_after_s=1.0)
        return min(able, key=self._loads.__getitem__)

    async def _look(self) -> None:
        """Read live workers and their load, at most once a second."""
        loop = asyncio.get_running_loop()
        if loop.time() - self._loads_at > LOADS_AGE_S:
            workers = [worker for worker in await self._leases.workers() if worker.lease_ends_in_s > 0]
            self._loads = {
                worker.worker: int(worker.info.get("sessions", 0))
                for worker in workers
                if not worker.info.get("draining")
            }
            self._able = {worker.worker: frozenset(worker.info.get("environments", ())) for worker in workers}
            self._loads_at = loop.time()

    async def _ask(self, worker: str, call: JsonObject) -> JsonObject:
        number = new_id("call")
        answered: asyncio.Future[JsonObject] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answered
        if self._reader is None or self._reader.done():
            self._reader = asyncio.create_task(self._read(), name="session answers")
        try:
            await self.books.call(worker, {"call": number, "asker": self._asker, **call})
            answer = await self._wait(answered, worker, call)
        finally:
            self._waiting.pop(number, None)
        if (fault := answer.get("fault")) is not None:
            kind = _FAULTS[fault["status"]]
            raise kind(fault["code"], fault["message"], retry_after_s=1.0 if fault["status"] == 503 else None)
        return answer

    async def _wait(self, answered: asyncio.Future[JsonObject], worker: str, call: JsonObject) -> JsonObject:
        """Wait for the reply; check the worker's lease now and then, since a dead worker sends none."""
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + self._settings.call_timeout_s + SPARE_S
        while loop.time() < ends_at:
            await self._shutdown.bounded(_within(answered, LOOK_AFTER_S))
            if answered.done():
                return answered.result()
            if self._shutdown.has_begun():  # most replies come at once; the others are for another process
                await _within(answered, ANSWER_S)
                if answered.done():
                    return answered.result()
                raise shutting_down()
            alive = {each.worker for each in await self._leases.workers() if each.lease_ends_in_s > 0}
            if worker not in alive:
                raise session_not_found(str(call.get("session_id") or call["record"]["session_id"]))
        raise Unavailable("session_timeout", "the worker that holds the session did not answer", retry_after_s=1.0)

    async def _read(self) -> None:
        while self._waiting:
            try:
                answers = await self.books.answers(self._asker, wait_s=LISTEN_S)
            except RedisError as error:
                _LOG.warning("session replies cannot be read: %s", error, extra={"action": "redis_unavailable"})
                await asyncio.sleep(AGAIN_S)
                continue
            for answer in answers:
                waiting = self._waiting.get(str(answer.get("call")))
                if waiting is not None and not waiting.done():
                    waiting.set_result(answer)


async def _within(answered: asyncio.Future[JsonObject], seconds: float) -> None:
    await asyncio.wait({answered}, timeout=seconds)
