"""Submission of batches: created with their rows, filled by NDJSON streams, sealed."""

from __future__ import annotations

from contextlib import aclosing

from fastapi import APIRouter, Request, Response

from api.bodies import (
    JSON_TYPES,
    NDJSON_TYPES,
    body_stream,
    check_content_type,
    check_model,
    json_response,
    parse_object,
    read_body,
    too_deep,
)
from api.ingest import check_defaults, check_values, row_reader, stage_lines, stage_values, staging
from api.routes.batches import batch_answer
from api.routes.policies import check_policy_hosts
from api.schemas.batches import BatchAnswer, BatchBody, BatchCreated, RowsAdded
from api.schemas.document import body_of
from api.services import Farm, Services
from gym.batch import BatchSpec
from gym.environments.row_requests import Api
from gym.errors import Invalid, NotFound
from gym.ids import is_id, new_id
from gym.policy import PolicySpec
from gym.state.batch_spec import spec_of
from gym.state.ledger.batches import batch_not_found
from gym.state.ledger.submission import NewBatch, canonical_digest, existing

router = APIRouter(tags=["batches"])


@router.post(
    "/v1/batches",
    status_code=201,
    response_model=BatchCreated,
    responses={200: {"model": BatchCreated, "description": "The same batch had been created before."}},
    openapi_extra=body_of(BatchBody),
)
async def create_batch(request: Request, farm: Farm) -> Response:
    """Create a batch, with as many rows as fit into one body; `sealed: false` leaves it open for more."""
    check_content_type(request, JSON_TYPES)
    body = parse_object(await read_body(request, farm.settings.api.max_body_bytes), what="the batch")
    options = {name: value for name, value in body.items() if name != "rows"}
    rows = body.get("rows", [])
    if not isinstance(rows, list):
        raise Invalid("invalid_batch", f"`rows` must be a list of rows; got {type(rows).__name__}", {"field": "rows"})
    if options.get("staleness") is not None:
        raise Invalid(
            "not_built", "field `staleness`: reserved and not implemented yet; leave it out", {"field": "staleness"}
        )
    spec = check_model(BatchSpec, options, code="invalid_batch", what="the batch")
    try:
        digest = canonical_digest(body)
    except (TypeError, ValueError):
        raise too_deep() from None
    batch_id = spec.batch_id or new_id("batch")
    if spec.batch_id is not None and await existing(farm.store, batch_id, digest) is not None:
        return await _created(farm, batch_id, 200)
    check_defaults(farm.registry, spec.environment, spec.agent)
    policy, served_by = await _resolve_policy(farm, spec.policy)
    spec = spec.model_copy(update={"batch_id": batch_id, "run": spec.run or batch_id, "policy": policy})
    reader = row_reader(
        farm, spec.environment, spec.num_samples, agent=spec.agent, sampling=spec.sampling, api=served_by.api
    )
    checked = await check_values(reader, rows)
    await farm.backlog.check_room(sum(row.header.num_samples for row in checked))
    async with staging(farm.store, batch_id) as staged:
        await stage_values(staged, checked)
    new = NewBatch(
        spec=spec.model_dump(mode="json"),
        digest=digest,
        run=spec.run or batch_id,
        priority=spec.priority,
        weight=spec.weight,
        policy=policy if isinstance(policy, str) else "",
    )
    published = await staged.publish(create=new, seal=spec.sealed)
    return await _created(farm, batch_id, 201 if published.created else 200)


@router.post(
    "/v1/batches/{batch_id}/rows",
    response_model=RowsAdded,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/x-ndjson": {"schema": {"type": "string", "description": "one row on each line"}}},
        }
    },
)
async def add_rows(batch_id: str, request: Request, farm: Farm) -> Response:
    """Append rows to an unsealed batch: a stream of any length, accepted as a whole or not at all."""
    check_content_type(request, NDJSON_TYPES)
    spec = await spec_of(farm.store, batch_id) if is_id(batch_id) else None
    if spec is None:
        raise batch_not_found(batch_id)
    reader = row_reader(
        farm,
        spec.environment,
        spec.num_samples,
        agent=spec.agent,
        sampling=spec.sampling,
        api=await policy_api(farm, spec.policy or farm.settings.default_policy),
    )
    async with staging(farm.store, batch_id) as staged, aclosing(body_stream(request)) as pieces:
        await stage_lines(reader, staged, pieces, farm.backlog)
    published = await staged.publish(create=None, seal=False)
    return json_response(
        {"accepted": published.accepted, "repeated": published.repeated, "submitted": published.submitted}
    )


@router.post("/v1/batches/{batch_id}/seal", response_model=BatchAnswer)
async def seal_batch(batch_id: str, farm: Farm) -> Response:
    """Seal a batch: it accepts no more rows and ends when its last rollout does. Idempotent."""
    if not is_id(batch_id):
        raise batch_not_found(batch_id)
    return json_response(batch_answer(await farm.batches.seal(batch_id)))


async def policy_api(farm: Services, policy: str | PolicySpec) -> Api:
    """Return the `api` of a batch's policy, the default one if that is no longer registered."""
    if isinstance(policy, PolicySpec):
        return policy.api
    try:
        return (await farm.policies.get(policy)).spec.api
    except NotFound:
        return "chat"


async def _resolve_policy(farm: Services, policy: str | PolicySpec | None) -> tuple[str | PolicySpec, PolicySpec]:
    """Return the policy as it is stored with the batch, and its spec.

    Raises Invalid for a name that is not registered, or a host that is not allowed.
    """
    if isinstance(policy, PolicySpec):
        check_policy_hosts(policy, farm.settings, field="policy.base_urls")
        return policy, policy
    name = policy or farm.settings.default_policy
    try:
        record = await farm.policies.get(name)
    except NotFound:
        whose = f"field `policy`: there is no policy {name}" if policy else f"there is no default policy ({name})"
        raise Invalid(
            "unknown_policy",
            f"{whose}; register it with PUT /v1/policies/{name} or in the settings, or send an inline policy",
            {"field": "policy", "policy": name},
        ) from None
    return name, record.spec


async def _created(farm: Services, batch_id: str, status: int) -> Response:
    batch = await farm.batches.status(batch_id)
    path = f"/v1/batches/{batch_id}"
    return json_response(
        {
            "batch_id": batch_id,
            "run": batch.run,
            "state": batch.state,
            "submitted": batch.ledger.submitted,
            "links": {"self": path, "results": f"{path}/results", "rows": f"{path}/rows", "seal": f"{path}/seal"},
        },
        status,
    )
