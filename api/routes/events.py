"""Events of a batch, as server-sent events (WHATWG HTML standard, section 9.2), until it has ended.

Invariant: an event's id is a cursor of the log, on the last event that belongs to that entry. A client that reconnects
with `Last-Event-ID` misses nothing, and may see the last entry's events again.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated

import orjson
from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import StreamingResponse

from api.errors import redis_error
from api.routes.batches import batch_answer
from api.routes.results import HEARTBEAT_S, LIGHT_PORTION, portions
from api.services import Farm, Services
from gym.errors import NotFound
from gym.ids import is_id
from gym.jsontypes import JsonObject
from gym.state.ledger.batches import BatchSnapshot, batch_not_found
from gym.state.ledger.log_position import LOG_WENT_BACK, LogWentBack
from gym.state.ledger.results import LogPage, View
from gym.state.redis.driver import RedisError

EVENTS = "text/event-stream"
LEDGER_S = 1.0
RECONNECT_MS = 1000

router = APIRouter(tags=["results"])


@router.get(
    "/v1/batches/{batch_id}/events",
    response_class=Response,
    responses={200: {"content": {EVENTS: {"schema": {"type": "string", "description": "server-sent events"}}}}},
)
async def stream_events(
    batch_id: str,
    farm: Farm,
    after: Annotated[str | None, Query(description="id of the event after which to begin")] = None,
    last_event_id: Annotated[str | None, Header(description="same as `after`, and takes precedence")] = None,
    wait: Annotated[
        float | None,
        Query(ge=0, le=60, allow_inf_nan=False, description="seconds; the response ends after the first results"),
    ] = None,
) -> Response:
    """Stream server-sent events.

    `rollout` (a result, `view=light`), `group` (all of its rollouts have ended), `batch` (its state changed), `ledger`
    (its counts changed; at most one a second), `log_went_back` (Redis has lost results: results after its
    `resume_after` may come again). The last event is the `batch` event with `ended_at`.

    With `wait` the response is short, for clients that poll: the state of the batch and the events after the cursor.
    """
    if not is_id(batch_id):
        raise batch_not_found(batch_id)
    cursor = last_event_id or after
    lost = b""
    try:
        first = await farm.results.page(batch_id, after=cursor, limit=LIGHT_PORTION, view=View.LIGHT)
    except LogWentBack as error:
        lost, first = _went_back(error)
    if wait is not None:
        return Response(lost + await _short(farm, batch_id, first, wait_s=0 if lost else wait), media_type=EVENTS)
    headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
    return StreamingResponse(event_lines(farm, batch_id, first, lost=lost), media_type=EVENTS, headers=headers)


def _went_back(error: LogWentBack) -> tuple[bytes, LogPage]:
    """Return the event for lost results and the page to resume from; its id is the last cursor that is still valid."""
    after = error.resume_after
    return event(LOG_WENT_BACK, orjson.dumps(error.details), event_id=after), LogPage([], [], after, done=False)


def event(kind: str, data: bytes, *, event_id: str | None = None) -> bytes:
    """Format an event; JSON written by orjson has no line breaks."""
    named = f"id: {event_id}\n" if event_id else ""
    return f"event: {kind}\n{named}data: ".encode() + data + b"\n\n"


async def event_lines(
    farm: Services, batch_id: str, page: LogPage, *, lost: bytes = b"", heartbeat_s: float = HEARTBEAT_S
) -> AsyncIterator[bytes]:
    """Yield events from a first page on, with comments while nothing happens; stop early if Redis is lost."""
    yield b"retry: %d\n\n" % RECONNECT_MS + lost
    changes = _Changes(farm, batch_id)
    said_at = time.monotonic()
    try:
        while True:
            try:
                found = portions(farm.results, batch_id, page, View.LIGHT, wait_s=heartbeat_s, shutdown=farm.shutdown)
                async with aclosing(found) as pages:
                    async for page in pages:
                        said = await _all(farm, batch_id, changes, page)
                        if said:
                            yield said
                        elif time.monotonic() - said_at >= heartbeat_s:
                            yield b": nothing new\n\n"
                        else:
                            continue
                        said_at = time.monotonic()
                        if changes.ended:
                            return
                if farm.shutdown.has_begun():
                    return  # the client reconnects with the last event's id
                page = LogPage([], [], page.next_after, done=False)  # some of its rollouts were queued again meanwhile
            except LogWentBack as error:
                lost, page = _went_back(error)
                yield lost
    except NotFound:
        return  # kept for as long as the settings say, then deleted
    except RedisError as error:
        if redis_error(error, submitting=False) is None:
            raise


async def _short(farm: Services, batch_id: str, page: LogPage, *, wait_s: float) -> bytes:
    """Yield the events of one page, once it is there."""
    ends_at = time.monotonic() + wait_s
    while not page.records and not page.done and (left_s := ends_at - time.monotonic()) > 0:
        await farm.shutdown.bounded(farm.results.wait(batch_id, after=page.next_after, timeout_s=left_s))
        if farm.shutdown.has_begun():
            break
        try:
            page = await farm.results.page(batch_id, after=page.next_after, limit=LIGHT_PORTION, view=View.LIGHT)
        except LogWentBack as error:
            return _went_back(error)[0]
    return await _all(farm, batch_id, _Changes(farm, batch_id), page)


async def _all(farm: Services, batch_id: str, changes: _Changes, page: LogPage) -> bytes:
    """Yield all events that belong to a page."""
    return b"".join([*await changes.before(), *await _results(farm, batch_id, page), *await changes.after(page)])


async def _results(farm: Services, batch_id: str, page: LogPage) -> list[bytes]:
    """Yield results, and the groups that they complete."""
    groups = await farm.feed.groups_ended(batch_id, page.cursors)
    said = []
    for cursor, record in zip(page.cursors, page.records, strict=True):
        outcomes = groups.get(cursor)
        said.append(event("rollout", record, event_id=None if outcomes else cursor))
        if outcomes:
            result = orjson.loads(record)
            group = {name: result.get(name) for name in ("group_id", "task_id", "environment")}
            said.append(event("group", orjson.dumps(group | {"outcomes": outcomes}), event_id=cursor))
    return said


class _Changes:
    """State of a batch that has been reported."""

    def __init__(self, farm: Services, batch_id: str) -> None:
        self._farm = farm
        self._batch_id = batch_id
        self._batch: tuple[object, ...] = ()
        self._ledger: JsonObject = {}
        self._ledger_at = 0.0
        self.ended = False

    async def before(self) -> list[bytes]:
        """Return the initial state of the batch; its end is reported last."""
        if self._batch:
            return []
        status = await self._farm.batches.status(self._batch_id)
        return [] if status.ended else self._say_batch(status)

    async def after(self, page: LogPage) -> list[bytes]:
        """Return the changes since then; the end only if no result is left to report."""
        status = await self._farm.batches.status(self._batch_id)
        final = page.done and status.ended
        said = self._say_ledger(status, at_once=final)
        if final or not status.ended:
            said += self._say_batch(status)
        self.ended = final
        return said

    def _say_batch(self, status: BatchSnapshot) -> list[bytes]:
        seen = (status.state, status.sealed, status.ended_at)
        if seen == self._batch:
            return []
        self._batch = seen
        return [event("batch", orjson.dumps(batch_answer(status)))]

    def _say_ledger(self, status: BatchSnapshot, *, at_once: bool) -> list[bytes]:
        ledger = status.ledger.as_dict()
        if ledger == self._ledger or not (at_once or time.monotonic() - self._ledger_at >= LEDGER_S):
            return []
        self._ledger, self._ledger_at = ledger, time.monotonic()
        return [event("ledger", orjson.dumps(ledger))]
