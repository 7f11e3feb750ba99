"""Health, metrics, workers, alarms and queues."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from api.bodies import json_response
from api.errors import REDIS_RETRY_S
from api.metrics import HttpMetrics, exposition, read_farm
from api.routes.batches import breaker_answer
from api.schemas.document import Items
from api.services import MOVING, Farm, Services, active_counters
from api.shutdown import shutting_down
from gym.errors import Unavailable
from gym.state.dispatcher_health import dispatcher_trouble
from gym.state.redis.driver import RedisError
from gym.state.redis.store import RedisAway
from gym.state.redis.unreadable import reason

router = APIRouter(tags=["operations"])


@router.get("/healthz", response_model=dict[str, str])
async def healthz() -> Response:
    """Liveness: this process is alive."""
    return json_response({"status": "alive"})


@router.get("/readyz", response_model=dict[str, str])
async def readyz(
    farm: Farm,
    needs: Annotated[
        Literal["farm", "redis"], Query(description="`redis`: only whether this process can serve, for a load balancer")
    ] = "farm",
) -> Response:
    """Readiness: Redis, at least one worker and the dispatcher are up.

    Otherwise the answer is 503 with the missing parts. `alarms` lists active alarms.
    """
    if farm.shutdown.has_begun():
        raise shutting_down()
    missing = await _missing(farm)
    if needs == "redis":
        missing = {part: why for part, why in missing.items() if part == "redis"}
    if missing:
        named = ", ".join(f"{name} ({why})" if why else name for name, why in missing.items())
        raise Unavailable(
            "not_ready",
            f"missing: {named}; start it, or look at its log",
            {"missing": list(missing), "reasons": {name: why for name, why in missing.items() if why}},
            retry_after_s=REDIS_RETRY_S,
        )
    alarms = await farm.alarms.standing()
    told = {"alarms": "; ".join(str(alarm["message"]) for alarm in alarms.values())} if alarms else {}
    return json_response({"status": "ready", **told})


async def _missing(farm: Services) -> dict[str, str]:
    """Return the missing parts, each with the reason if known."""
    try:
        await _ask_redis(farm)
        workers = await farm.leases.workers()
        dispatcher = await farm.leases.dispatcher()
        trouble = await dispatcher_trouble(farm.store)
    except RedisError as error:
        # a connection error contains the address; a reply of the server is what its operator must see
        return {"redis": type(error).__name__ if isinstance(error, RedisAway) else reason(error)}
    missing = {}
    if not any(worker.lease_ends_in_s > 0 and worker.role == "worker" for worker in workers):
        missing["worker"] = ""
    if dispatcher is None:
        missing["dispatcher"] = ""
    elif trouble is not None:
        missing["dispatcher"] = f"it cannot tick: {trouble}"
    if farm.relay is not None and farm.relay.trouble:
        missing["relay"] = farm.relay.trouble
    return missing


async def _ask_redis(farm: Services) -> None:
    """Raise if this process may not read, write or run scripts. Nothing is changed."""
    await farm.store.insist(farm.store.keys.totals, "HDEL", "")


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request, farm: Farm) -> Response:
    """Return metrics in Prometheus text format."""
    http: HttpMetrics = request.app.state.http_metrics
    return Response(exposition(http, await read_farm(farm.store, farm.leases)), media_type=CONTENT_TYPE_LATEST)


@router.get("/v1/workers", response_model=Items)
async def workers(farm: Farm) -> Response:
    """List worker processes and their load; `alive` is false for a process whose lease expired."""
    items: list[dict[str, Any]] = [
        {
            **worker.info,
            "worker": worker.worker,
            "alive": worker.lease_ends_in_s > 0,
            "lease_ends_in_s": worker.lease_ends_in_s,
            "slots": worker.slots,
        }
        for worker in await farm.leases.workers()
    ]
    return json_response({"items": items, "dispatcher": await farm.leases.dispatcher()})


@router.get("/v1/alarms", response_model=Items)
async def alarms(farm: Farm) -> Response:
    """List active alarms (`standing`), and alarms raised and cleared, newest first."""
    standing = list((await farm.alarms.standing()).values())
    return json_response({"items": await farm.alarms.log(), "standing": standing})


@router.get("/v1/queues", response_model=Items)
async def queues(farm: Farm) -> Response:
    """Return queued and running rollouts of each active batch.

    Of `queued`, `dispatched` are in Celery. Of `queued` and `judging`, `parked` wait for a failing policy, environment
    or judge to recover: see `breakers`.
    """
    found, breakers = await active_counters(farm.store)
    batches = [(name, {field: counters[field] for field in (*MOVING, "parked")}) for name, counters in found]
    totals = {field: sum(counters[field] for _, counters in batches) for field in (*MOVING, "parked")}
    items = [{"batch_id": name, **counters} for name, counters in batches]
    shown = [breaker_answer(breaker) for breaker in breakers if breaker.open]
    return json_response({"items": items, **totals, "breakers": shown})
