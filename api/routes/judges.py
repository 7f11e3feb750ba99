"""Judges: their load, and rejudging of results."""

from __future__ import annotations

from collections import Counter
from typing import Any

from fastapi import APIRouter, Request, Response

from api.bodies import json_response, read_model
from api.routes.batches import MAX_BODY_BYTES, breaker_answer, members_ids
from api.schemas.document import body_of
from api.schemas.judges import JudgeList, RejudgeBody, Rejudging
from api.services import Farm, Services
from gym.errors import Invalid
from gym.ids import is_id
from gym.jsontypes import JsonObject
from gym.model_client.http.urls import EndpointUrl
from gym.state.ledger.batches import batch_not_found
from gym.state.ledger.breakers import BreakerKind
from gym.state.ledger.judging import Judging
from gym.state.ledger.rejudge import rejudge
from gym.state.replicas import PublishedReplica, Replicas, shown

router = APIRouter(tags=["judges"])


@router.get("/v1/judges", response_model=JudgeList)
async def judges(farm: Farm) -> Response:
    """List the judges of the settings and all published ones: replicas, load, waiting rollouts, parked judges."""
    names = [name.decode() for name in await farm.store.redis.zrange(farm.store.keys.active, 0, -1)]
    waiting: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for lines in (await Judging(farm.store).load(names)).values():
        for judge, line in lines.items():
            waiting[judge] += line.waiting
            asked[judge] += line.asked
    parked = {
        breaker.key.name: breaker_answer(breaker) | {"failures": breaker.failures}
        for breaker in await farm.breakers.all()
        if breaker.open and breaker.key.kind is BreakerKind.JUDGE
    }
    published = await Replicas(farm.store).all()
    seen = [worker for worker in await farm.leases.workers() if worker.role == "judge" and worker.lease_ends_in_s > 0]
    known = {*farm.settings.judges, *waiting, *parked, *(each.replica.judge for each in published)}
    items = [
        {
            **_configured(farm, name),
            "waiting": waiting[name],
            "asked": asked[name],
            "parked": parked.get(name),
            "replicas": _replicas(farm, name, published),
            "workers": [
                {"worker": worker.worker, **worker.info["judges"][name]}
                for worker in seen
                if name in (worker.info.get("judges") or {})
            ],
        }
        for name in sorted(known)
    ]
    return json_response({"items": items, "judge_workers": len(seen)})


@router.post(
    "/v1/batches/{batch_id}/rejudge", response_model=Rejudging, openapi_extra=body_of(RejudgeBody, required=False)
)
async def rejudge_batch(batch_id: str, request: Request, farm: Farm) -> Response:
    """Score stored trajectories again, without calling a policy. A result keeps its reward until a new verdict."""
    if not is_id(batch_id):
        raise batch_not_found(batch_id)
    body = await read_model(request, RejudgeBody, limit=MAX_BODY_BYTES, code="invalid_rejudge", what="the rejudge")
    if body.judge is not None and body.judge not in farm.settings.judges:
        there = ", ".join(sorted(farm.settings.judges)) or "none"
        raise Invalid(
            "invalid_rejudge",
            f"field `judge`: there is no judge {body.judge!r}; the settings have {there}",
            {"field": "judge"},
        )
    wanted = None
    if body.rollout_ids is not None:
        wanted = members_ids(batch_id, body.rollout_ids, code="invalid_rejudge")
    found = await rejudge(farm.store, farm.results, batch_id, wanted=wanted, judge=body.judge)
    await farm.store.wake_dispatcher()
    return json_response({"rejudging": found.judged, "skipped": found.skipped})


def _configured(farm: Services, name: str) -> JsonObject:
    settings = farm.settings.judges.get(name)
    if settings is None:
        return {"judge": name, "configured": False, "kind": None, "model": None, "version": None}
    return {
        "judge": name,
        "configured": True,
        "kind": settings.kind,
        "model": settings.model or None,
        "version": settings.digest(),
    }


def _replicas(farm: Services, name: str, published: list[PublishedReplica]) -> list[dict[str, Any]]:
    """Return the published replicas, or the fixed URL of a judge that has one."""
    settings = farm.settings.judges.get(name)
    if settings is not None and settings.base_urls:
        return [{"url": EndpointUrl.parse(url).shown, "state": "fixed"} for url in settings.base_urls]
    return [shown(each) for each in published if each.replica.judge == name]
