"""Leased and acknowledged results, so that a restarted trainer gets every result again that it had not used."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from api.bodies import json_response, read_model
from api.errors import ErrorAnswer
from api.routes.results import JSON, MSGPACK, answer_type, items_json
from api.schemas.document import body_of
from api.schemas.leases import AckBody, Acknowledged, LeaseAnswer, LeaseBody
from api.services import Farm
from gym.ids import is_id, new_id
from gym.results.record import pack_page
from gym.state.ledger.batches import batch_not_found
from gym.state.ledger.results import View, rfc3339

MAX_BODY_BYTES = 4 * 2**20

router = APIRouter(tags=["results"])


@router.post(
    "/v1/batches/{batch_id}/lease",
    response_model=LeaseAnswer,
    responses={
        409: {"model": ErrorAnswer, "description": "`log_went_back`: results handed out since `position` are lost"},
        200: {"content": {MSGPACK: {"schema": {"type": "string", "format": "binary", "description": "arrays packed"}}}},
    },
    openapi_extra=body_of(LeaseBody),
)
async def lease_results(
    batch_id: str,
    request: Request,
    farm: Farm,
    wait: Annotated[float, Query(ge=0, le=60, allow_inf_nan=False, description="seconds to wait for a result")] = 0,
    view: View = View.LIGHT,
) -> Response:
    """Lease finished results, oldest first, that this consumer has neither acknowledged nor leased.

    Results that are not acknowledged within `ttl_s` are handed out again. A call with its own `lease_id` may be
    repeated: while the lease lasts it returns the results under that lease, for another `ttl_s`. With a `position`
    (`0-0` at first) the response has the next one. 409 `log_went_back` says that Redis has lost results, or
    acknowledgements, since that position: begin at `0-0` again.
    """
    if not is_id(batch_id):
        raise batch_not_found(batch_id)
    body = await read_model(request, LeaseBody, limit=MAX_BODY_BYTES, code="invalid_lease", what="the lease")
    packed = answer_type(request.headers.get("accept", "")) == MSGPACK
    lease_id = body.lease_id or new_id("lease")
    ends_at = time.monotonic() + wait
    while True:
        lease = await farm.feed.lease(
            batch_id,
            body.consumer,
            most=body.max,
            ttl_s=body.ttl_s,
            unit=body.unit,
            lease_id=lease_id,
            view=view,
            packed=packed,
            position=body.position,
        )
        left_s = ends_at - time.monotonic()
        if lease.records or lease.done or left_s <= 0 or farm.shutdown.has_begun():
            break
        await farm.shutdown.bounded(farm.feed.wait(batch_id, body.consumer, timeout_s=left_s))
        if farm.shutdown.has_begun() or await request.is_disconnected():
            break  # before results are leased to a client that has gone
    expires_at = rfc3339(lease.expires_at) if lease.records else None
    rest = {"lease_id": lease.lease_id, "expires_at": expires_at, "done": lease.done}
    if body.position is not None:
        rest["position"] = lease.position
    if packed:
        return Response(pack_page(lease.records, **rest), media_type=MSGPACK)
    return Response(items_json(lease.records, **rest), media_type=JSON)


@router.post("/v1/batches/{batch_id}/ack", response_model=Acknowledged, openapi_extra=body_of(AckBody))
async def acknowledge(batch_id: str, request: Request, farm: Farm) -> Response:
    """Acknowledge results of a lease, or named ones, so that this consumer does not get them again. Idempotent.

    `acknowledged` counts newly acknowledged results. A result that was taken back (requeue) and produced again is a new
    one. With both `lease_id` and `rollout_ids`, only results handed out under that lease are acknowledged.
    """
    if not is_id(batch_id):
        raise batch_not_found(batch_id)
    body = await read_model(request, AckBody, limit=MAX_BODY_BYTES, code="invalid_ack", what="the acknowledgement")
    acknowledged = await farm.feed.ack(batch_id, body.consumer, lease_id=body.lease_id, rollout_ids=body.rollout_ids)
    return json_response({"acknowledged": acknowledged})
