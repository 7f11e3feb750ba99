"""NeMo Gym's endpoints on the farm's port, for its unmodified collector and NeMo RL's rollout path.

Their client aborts a whole collection on any response that is not 2xx, and posts a row again without end when its
connection breaks. So a row that cannot be run and a rollout that failed are answered 200 with the failure named. A full
backlog or an unavailable Redis makes the client wait, and a repeated row is the same rollout.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Header, Request, Response

from api.bodies import JSON_TYPES, check_content_type, json_response, parse_object, read_body
from api.errors import redis_error
from api.ingest import row_reader
from api.routes.submission import policy_api
from api.services import Farm, Services
from api.shutdown import shutting_down
from gym.errors import Conflict, Invalid, Overloaded, RequestError, TooLarge, Unavailable
from gym.ids import RolloutRef, is_id, new_id
from gym.jsontypes import JsonObject
from gym.plain import exact_json
from gym.state.ledger.submission import StagedRow, canonical_digest
from gym.state.redis.driver import RedisError
from gym.wire.nemo_gym import aggregate_metrics, config_yaml, failed_response, row_key, verify_response

T = TypeVar("T")
WAIT_SLICE_S = 15.0
MOST_WAIT_S = 24 * 3600.0
ROOM_S = 3600.0
METRICS_BODY_BYTES = 256 * 2**20  # NeMo Gym posts the results of a whole collection at once
AGAIN_S = 1.0
_JOB = "job of the row; by default the job that began when this address last read the configuration"

router = APIRouter(tags=["nemo gym"])


@router.get("/global_config_dict_yaml", response_class=Response)
async def global_config_dict_yaml(request: Request, farm: Farm) -> Response:
    """Return YAML in a JSON string: an agent for each environment, at the address of this request.

    Reading it begins a job: rows that this address posts from now on are new, whatever their indices.
    """
    await farm.single_rows.begin_job(_address(request))
    url = request.url
    port = url.port or (443 if url.scheme == "https" else 80)
    body = config_yaml(farm.registry.names(), host=url.hostname or farm.settings.host, port=port)
    return Response(body, media_type="application/json")


def _object(**schema: Any) -> dict[str, Any]:
    """Return the documentation of a JSON object whose fields are NeMo Gym's."""
    content = {"application/json": {"schema": {"type": "object", **schema}}}
    return {"requestBody": {"required": True, "content": content}}


@router.post("/run", response_model=dict[str, Any], openapi_extra=_object(description="one row, as NeMo Gym posts it"))
async def run_row(
    request: Request,
    farm: Farm,
    x_farm_job: Annotated[str | None, Header(description=_JOB)] = None,
) -> Response:
    """Run one row; return its verify response when the rollout has ended.

    Idempotent per `_ng_task_index`, `_ng_rollout_index` and `_ng_attempt_index` within a job. A rollout that failed, or
    a row that cannot be run, is a 200 with `_ng_failure_class` and the reward null.
    """
    check_content_type(request, JSON_TYPES)
    row = parse_object(await read_body(request, farm.settings.api.max_body_bytes), what="the row")
    await farm.policies.get(farm.settings.default_policy)
    if x_farm_job is not None and not is_id(x_farm_job):
        raise Invalid("invalid_job", "header `x-farm-job` is not an id ([A-Za-z0-9._:-], 1 to 128 characters)")
    try:
        staged = await _read(farm, row)
    except (Invalid, TooLarge) as error:
        return json_response(failed_response(row, kind="bad_row", message=error.message))
    rollout = await _patiently(farm, lambda: _submit(farm, request, staged, x_farm_job))
    ends_at = time.monotonic() + MOST_WAIT_S
    while time.monotonic() < ends_at and not await request.is_disconnected():
        result = await _patiently(
            farm, lambda: farm.shutdown.bounded(farm.single_rows.result(rollout, wait_s=WAIT_SLICE_S))
        )
        if result is not None:
            return Response(exact_json.dumps(verify_response(row, result)), media_type="application/json")
        if farm.shutdown.has_begun():
            raise shutting_down()
    raise Unavailable(
        "not_ended",
        f"rollout {rollout} has not ended yet; post the same row again",
        {"rollout_id": str(rollout)},
        retry_after_s=1,
    )


@router.post("/aggregate_metrics", response_model=dict[str, Any], openapi_extra=_object(required=["verify_responses"]))
async def post_aggregate_metrics(request: Request, farm: Farm) -> Response:
    """Return mean, maximum, minimum, median and standard deviation of the numbers in verify responses."""
    check_content_type(request, JSON_TYPES)
    limit = max(METRICS_BODY_BYTES, farm.settings.api.max_body_bytes)
    body = parse_object(await read_body(request, limit), what="the request")
    responses = body.get("verify_responses")
    if not isinstance(responses, list) or not all(isinstance(response, dict) for response in responses):
        raise Invalid("invalid_request", "`verify_responses` must be a list of objects", {"field": "verify_responses"})
    return json_response(await asyncio.to_thread(aggregate_metrics, responses))


def _address(request: Request) -> str:
    return request.client.host if request.client is not None else "unknown"


async def _read(farm: Services, row: JsonObject) -> StagedRow:
    try:
        staged = row_reader(farm, None, 1).read_value(row, row=0)
    except Invalid:  # perhaps for the sake of an api that the policy does not have
        api = await policy_api(farm, farm.settings.default_policy)
        staged = row_reader(farm, None, 1, api=api).read_value(row, row=0)
    digest = canonical_digest(row)
    header = replace(staged.header, task_id=row_key(row, digest) or new_id("row"), num_samples=1)
    return replace(staged, header=header, digest=digest)


async def _submit(farm: Services, request: Request, row: StagedRow, job: str | None) -> RolloutRef:
    await farm.backlog.check_room(1)
    for _ in range(2):
        current = job or await farm.single_rows.job_of(_address(request))
        try:
            return await farm.single_rows.submit(current, farm.settings.default_policy, row)
        except Conflict:
            if job is not None:
                raise
    raise Unavailable("job_ended", "the job ended meanwhile; post the same row again", retry_after_s=1)


async def _patiently(farm: Services, call: Callable[[], Awaitable[T]]) -> T:
    """Retry while the backlog is full or Redis is unavailable, since the client would give up for good."""
    ends_at = time.monotonic() + ROOM_S
    while True:
        try:
            return await call()
        except (Overloaded, Unavailable) as error:
            refusal: RequestError = error
        except RedisError as error:
            meant = redis_error(error, submitting=True)
            if meant is None:
                raise
            refusal = meant
        if time.monotonic() >= ends_at:
            raise refusal
        await farm.shutdown.bounded(asyncio.sleep(min(AGAIN_S, refusal.retry_after_s or AGAIN_S)))
        if farm.shutdown.has_begun():
            raise shutting_down()
