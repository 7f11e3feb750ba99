"""Results of a batch: pages by cursor with long polling, as JSON or msgpack, or one NDJSON stream to the end.

Memory is bounded for each request: pages with trajectories stop at `PAGE_BYTES`, whatever the limit says.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Annotated

import orjson
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse

from api.errors import ErrorAnswer, redis_error
from api.schemas.results import ResultPage
from api.services import Farm
from api.shutdown import Shutdown
from gym.ids import is_id
from gym.results.record import pack_page
from gym.state.ledger.batches import batch_not_found
from gym.state.ledger.log_position import LogWentBack
from gym.state.ledger.results import LogPage, ResultLog, View, gather_s
from gym.state.redis.driver import RedisError

JSON = "application/json"
NDJSON = "application/x-ndjson"
MSGPACK = "application/msgpack"
LIGHT_PORTION = 500
HEAVY_PORTION = 32
PAGE_BYTES = 32 * 2**20
HEARTBEAT_S = 10.0
REDIS_AWAY_S = 60.0  # a stream outlives a restart of Redis, not a longer outage

router = APIRouter(tags=["results"])


@router.get(
    "/v1/batches/{batch_id}/results",
    response_model=ResultPage,
    responses={
        409: {"model": ErrorAnswer, "description": "`log_went_back`: results before the cursor are lost"},
        200: {
            "content": {
                NDJSON: {"schema": {"type": "string", "description": "one result on each line, as they finish"}},
                MSGPACK: {"schema": {"type": "string", "format": "binary", "description": "arrays packed"}},
            }
        },
    },
)
async def get_results(
    batch_id: str,
    request: Request,
    farm: Farm,
    after: Annotated[str | None, Query(description="`next_after` of an earlier response")] = None,
    limit: Annotated[int, Query(ge=1, le=5000)] = 500,
    wait: Annotated[float, Query(ge=0, le=60, allow_inf_nan=False, description="seconds to wait for a result")] = 0,
    view: View = View.LIGHT,
) -> Response:
    """Return results in order of completion. A page may hold fewer than `limit`; `done` says that no more follow.

    409 `log_went_back` says that Redis has lost results before the cursor: continue after `details.resume_after`.
    Rollouts whose results came after that run again, and their new results follow.

    `Accept: application/x-ndjson` streams until the batch is done, with an empty line now and then while nothing
    happens; `limit` and `wait` are ignored. A farm that is shut down ends the stream with a line `{"next_after": …,
    "done": false}` instead of a result: continue from that cursor.
    """
    if not is_id(batch_id):
        raise batch_not_found(batch_id)
    wanted = answer_type(request.headers.get("accept", ""))
    if wanted == NDJSON:
        first = await _portion(farm.results, batch_id, after=after, limit=LIGHT_PORTION, view=view)
        lines = result_lines(farm.results, batch_id, first, view, shutdown=farm.shutdown)
        return StreamingResponse(lines, media_type=NDJSON)
    packed = wanted == MSGPACK
    ends_at = time.monotonic() + wait
    await farm.shutdown.bounded(asyncio.sleep(min(wait, gather_s(after))))
    while True:
        page = await _page(farm.results, batch_id, after=after, limit=limit, view=view, packed=packed)
        left_s = ends_at - time.monotonic()
        if page.records or page.done or left_s <= 0 or farm.shutdown.has_begun() or await request.is_disconnected():
            break
        after = page.next_after
        await farm.shutdown.bounded(farm.results.wait(batch_id, after=after, timeout_s=left_s))
    if packed:
        return Response(pack_page(page.records, next_after=page.next_after, done=page.done), media_type=MSGPACK)
    return Response(items_json(page.records, next_after=page.next_after, done=page.done), media_type=JSON)


def answer_type(accept: str) -> str:
    """Return the first type of an `Accept` header that this call supports; JSON if there is none."""
    for part in accept.lower().split(","):
        name = part.partition(";")[0].strip()
        if name in (JSON, NDJSON, MSGPACK):
            return name
    return JSON


def items_json(records: list[bytes], **rest: object) -> bytes:
    """Wrap records that are already JSON in `{items, …}`."""
    parts = [b'{"items":[']
    for record in records:
        parts += (b",", record) if len(parts) > 1 else (record,)
    return b"".join([*parts, b"],", orjson.dumps(rest)[1:]])  # a page is large, so it is copied once


async def _portion(
    results: ResultLog, batch_id: str, *, after: str | None, limit: int, view: View, packed: bool = False
) -> LogPage:
    """Return as many as may be in memory at once."""
    most = limit if view is View.LIGHT else min(limit, HEAVY_PORTION)
    return await results.page(batch_id, after=after, limit=most, view=view, packed=packed)


async def _page(
    results: ResultLog, batch_id: str, *, after: str | None, limit: int, view: View, packed: bool
) -> LogPage:
    """Return up to `limit` results, fewer if their trajectories are large."""
    records: list[bytes] = []
    cursors: list[str] = []
    size = 0
    while True:
        portion = await _portion(results, batch_id, after=after, limit=limit - len(records), view=view, packed=packed)
        records += portion.records
        cursors += portion.cursors
        size += sum(map(len, portion.records))
        after = portion.next_after
        if not portion.records or portion.done or len(records) >= limit or size >= PAGE_BYTES:
            return LogPage(records, cursors, after, portion.done)


async def result_lines(
    results: ResultLog,
    batch_id: str,
    first: LogPage,
    view: View,
    *,
    heartbeat_s: float = HEARTBEAT_S,
    shutdown: Shutdown | None = None,
) -> AsyncIterator[bytes]:
    """Yield every result as a line, from a first page until the batch is done; an empty line while nothing happens.

    At a shutdown the last line is the cursor to continue from, so that the stream does not look complete. Raises
    redis-py's errors if Redis stays unavailable, and LogWentBack after a last line that reports it; the connection is
    then cut for the same reason.
    """
    shutdown = shutdown or Shutdown()
    said_at = time.monotonic()
    page = first
    try:
        async for page in portions(results, batch_id, first, view, wait_s=heartbeat_s, shutdown=shutdown):
            if page.records:
                yield b"\n".join(page.records) + b"\n"
                said_at = time.monotonic()
            elif time.monotonic() - said_at >= heartbeat_s:
                yield b"\n"
                said_at = time.monotonic()
    except LogWentBack as error:
        yield orjson.dumps({"error": {"code": error.code, "message": error.message, "details": error.details}}) + b"\n"
        raise
    if not page.done:
        yield orjson.dumps({"next_after": page.next_after, "done": False}) + b"\n"


async def portions(
    results: ResultLog,
    batch_id: str,
    page: LogPage,
    view: View,
    *,
    shutdown: Shutdown,
    wait_s: float = HEARTBEAT_S,
) -> AsyncGenerator[LogPage]:
    """Yield pages from a first one until the batch is done or the process is shut down.

    An empty page comes at least every `wait_s` or second. Raises redis-py's errors if Redis stays unavailable for
    longer than `REDIS_AWAY_S`, or LogWentBack.
    """
    seen_redis_at = time.monotonic()
    while True:
        yield page
        if page.done or shutdown.has_begun():
            return
        try:
            if page.records:
                await shutdown.bounded(asyncio.sleep(gather_s(page.next_after)))
            else:
                await shutdown.bounded(results.wait(batch_id, after=page.next_after, timeout_s=wait_s))
            if shutdown.has_begun():
                return
            page = await _portion(results, batch_id, after=page.next_after, limit=LIGHT_PORTION, view=view)
            seen_redis_at = time.monotonic()
        except RedisError as error:
            if redis_error(error, submitting=False) is None or time.monotonic() - seen_redis_at > REDIS_AWAY_S:
                raise
            page = LogPage([], [], page.next_after, done=False)
            await shutdown.bounded(asyncio.sleep(min(1.0, wait_s)))
