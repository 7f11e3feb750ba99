"""Policies: the model servers that trainers register. Keys are accepted and never returned."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from api.bodies import json_response, read_model
from api.schemas.document import Items, body_of
from api.schemas.policies import PolicyAnswer
from api.services import Farm
from gym.config import Settings
from gym.errors import Invalid
from gym.fields.masked import MASK, mask_address
from gym.host_rules import check_not_own_proxy, policy_rules
from gym.ids import is_id
from gym.jsontypes import JsonObject
from gym.model_client.http.hosts import check_hosts
from gym.model_client.routing.served_model import ServedModel
from gym.policy import PolicySpec
from gym.state.ledger.breakers import policy_key
from gym.state.policies import policy_not_found

MAX_BODY_BYTES = 2**20

router = APIRouter(tags=["policies"])


@router.put("/v1/policies/{name}", response_model=PolicyAnswer, openapi_extra=body_of(PolicySpec))
async def put_policy(name: str, request: Request, farm: Farm) -> Response:
    """Register or replace a policy; it takes effect for the next model call."""
    if not is_id(name):
        raise Invalid(
            "invalid_policy", f"{name[:200]!r} is not a name ([A-Za-z0-9._:-], 1 to 128 characters)", {"field": "name"}
        )
    spec = await read_model(request, PolicySpec, limit=MAX_BODY_BYTES, code="invalid_policy", what="the policy")
    check_policy_hosts(spec, farm.settings, field="base_urls")
    record = await farm.policies.put(name, spec)
    await farm.breakers.probe_soon(policy_key(name))  # it may now be served elsewhere
    return json_response(policy_answer(record))


@router.get("/v1/policies", response_model=Items)
async def list_policies(farm: Farm) -> Response:
    """List every registered policy."""
    records = await farm.policies.all()
    return json_response({"items": [policy_answer(records[name]) for name in sorted(records)]})


@router.get("/v1/policies/{name}", response_model=PolicyAnswer)
async def get_policy(name: str, farm: Farm) -> Response:
    """Return one policy."""
    return json_response(policy_answer(await farm.policies.get(name)))


@router.delete("/v1/policies/{name}", response_model=dict[str, Any])
async def delete_policy(name: str, farm: Farm) -> Response:
    """Delete a policy; rollouts that still need it fail, and can be requeued once it is registered again."""
    if not await farm.policies.delete(name):
        raise policy_not_found(name)
    await farm.breakers.alive(policy_key(name))  # no rollout waits for a deleted policy
    return json_response({"name": name, "deleted": True})


def check_policy_hosts(spec: PolicySpec, settings: Settings, *, field: str) -> None:
    """Raise Invalid, naming the field, if the settings do not allow a policy on that host."""
    try:
        check_hosts(spec.base_urls, policy_rules(settings).all_patterns)
        check_not_own_proxy(spec.base_urls, settings)
    except Invalid as error:
        raise Invalid(error.code, f"field `{field}`: {error.message}", {**error.details, "field": field}) from None


def policy_shown(spec: JsonObject) -> JsonObject:
    """Return a policy's JSON without its key and without credentials in its URLs."""
    shown = {**spec, "base_urls": [mask_address(url) for url in spec["base_urls"]]}
    if shown.get("api_key") is not None:
        shown["api_key"] = MASK
    return shown


def policy_answer(record: ServedModel) -> JsonObject:
    """Return the current state of a policy; `version` is the one last announced, by PUT or by resume."""
    shown = policy_shown(record.spec.model_dump(mode="json"))
    return {
        "name": record.name,
        **shown,
        "version": record.version,
        "revision": record.revision,
        "paused": record.paused,
    }
