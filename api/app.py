"""The ASGI application of the REST api. It is stateless: any number of processes may serve one address."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import orjson
from fastapi import FastAPI

from api.auth import ApiKeyAuth
from api.docs_page import add_docs_page
from api.errors import ErrorAnswer, add_error_handlers
from api.metrics import HttpMetrics, MeasureRequests
from api.routes import (
    batches,
    environments,
    events,
    feed,
    groups,
    judges,
    nemo_gym,
    operations,
    policies,
    results,
    rollouts,
    sessions,
    submission,
    weight_sync,
)
from api.routes.policies import check_policy_hosts
from api.schemas.document import openapi_of
from api.services import Backlog, Services
from api.session_calls import SessionCalls
from api.shutdown import EndRequests, Shutdown
from api.single_rows import SingleRows
from gym.captures.recording import Captures
from gym.config import Settings
from gym.environments.registry import load_registry
from gym.errors import RequestError, SettingsError
from gym.relay.address import farm_channels
from gym.relay.server import RelayServer
from gym.results.blobs import BlobStore
from gym.state.alarms import Alarms
from gym.state.leases import Leases
from gym.state.ledger.batches import Batches
from gym.state.ledger.breakers import Breakers
from gym.state.ledger.feed import Feed
from gym.state.ledger.results import ResultLog
from gym.state.policies import Policies
from gym.state.redis.driver import RedisError
from gym.state.redis.eviction import watch_for_eviction
from gym.state.redis.store import Store, end_tasks

REGISTER_AGAIN_S = 1.0
RELAY_START_S = 1.0
END_AGAIN_S = 5.0  # longer than the relay takes to let its calls end
_LOG = logging.getLogger(__name__)
_ERRORS: dict[int | str, dict[str, Any]] = {
    422: {
        "model": ErrorAnswer,
        "description": "The request is invalid; `details` names the field, and the row if there is one.",
    },
    "4XX": {"model": ErrorAnswer, "description": "The request cannot be fulfilled."},
    503: {
        "model": ErrorAnswer,
        "description": "A service that the farm needs is unavailable; `Retry-After` says when to retry.",
    },
}


def create_app(settings: Settings, shutdown: Shutdown | None = None) -> FastAPI:
    """Return the ASGI app. At startup it connects without waiting: without Redis it answers 503."""
    app = FastAPI(
        title="Rollout farm",
        version=version("rollout-farm"),
        description="Runs reinforcement-learning rollouts for language-model agents, apart from training.",
        lifespan=_lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses=_ERRORS,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.settings = settings
    app.state.shutdown = shutdown = shutdown or Shutdown()
    app.state.http_metrics = HttpMetrics()
    app.state.routes = []
    add_error_handlers(app)
    for family in (
        operations,
        submission,
        batches,
        results,
        feed,
        events,
        rollouts,
        groups,
        environments,
        policies,
        weight_sync,
        sessions,
        nemo_gym,
        judges,
    ):
        app.include_router(family.router)
        app.state.routes += family.router.routes
    app.add_middleware(ApiKeyAuth, keys=settings.api.keys)
    app.add_middleware(EndRequests, shutdown=shutdown)
    app.add_middleware(MeasureRequests, metrics=app.state.http_metrics)
    add_docs_page(app)
    app.openapi = lambda: openapi_of(app)  # type: ignore[method-assign]  # FastAPI's documented way to extend it
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    settings: Settings = app.state.settings
    shutdown: Shutdown = app.state.shutdown
    shutdown.serve()
    if settings.redis.url is None:
        raise SettingsError("the api needs redis.url (FARM_REDIS_URL)")
    store = Store.connect(settings.redis.url, prefix=settings.redis.prefix, timeout_s=settings.redis.timeout_s)
    blobs = BlobStore(settings.data_dir / "blobs", inline_bytes=settings.results.inline_bytes)
    batch_calls = Batches(store)
    result_calls = ResultLog(store, blobs)
    lease_calls = Leases(store)
    services = Services(
        settings=settings,
        store=store,
        registry=load_registry(
            settings.environments, judges=settings.judges, agents=settings.agents, sandbox=settings.sandbox
        ),
        batches=batch_calls,
        results=result_calls,
        feed=Feed(store, blobs),
        captures=Captures(store),
        policies=Policies(store),
        breakers=Breakers(store, settings.breakers),
        leases=lease_calls,
        backlog=Backlog(store, settings.api.max_backlog),
        single_rows=SingleRows(store, result_calls, batch_calls),
        sessions=SessionCalls(store, lease_calls, settings.sessions, shutdown),
        alarms=Alarms(store),
        shutdown=shutdown,
    )
    relay = _relay(settings, settings.redis.url, app)
    if relay is not None:
        services = replace(services, relay=relay)
    app.state.services = services
    beside = [_start(watch_for_eviction(settings.redis.url, settings.redis.prefix), "watch for eviction")]
    try:
        if not await _register_policies(services):
            beside.append(_start(_keep_registering(services), "register policies"))
        if relay is not None:
            beside.append(_start(relay.serve(), "relay"))
            beside.append(_start(_retire_at_shutdown(relay, shutdown), "relay at shutdown"))
            with suppress(TimeoutError):
                await asyncio.wait_for(relay.listening.wait(), RELAY_START_S)
        yield
    finally:
        shutdown.begin()
        await end_tasks(beside, again_s=END_AGAIN_S)
        await services.single_rows.close()
        await services.sessions.close()
        await shutdown.settle()
        await store.close()


def _relay(settings: Settings, redis_url: str, app: FastAPI) -> RelayServer | None:
    """Return the server for clients over Redis, if the settings enable it."""
    if not settings.redis.clients:
        return None
    channels = farm_channels(redis_url, settings.redis.prefix)
    return RelayServer(redis_url, channels, app, timeout_s=settings.redis.timeout_s)


async def _retire_at_shutdown(relay: RelayServer, shutdown: Shutdown) -> None:
    await shutdown.wait()
    await relay.retire()


def _start(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(_complain)
    return task


def _complain(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _LOG.error("%s ended: %s", task.get_name(), error, exc_info=error, extra={"action": "task_failed"})


async def _keep_registering(services: Services) -> None:
    """Register the policies of the settings, retrying until Redis answers."""
    registered = False
    while not registered:
        await asyncio.sleep(REGISTER_AGAIN_S)
        registered = await _register_policies(services)


async def _register_policies(services: Services) -> bool:
    """Register the policies of the settings that changed. Return False if Redis is unavailable.

    A policy that a trainer has registered under the same name since then is kept: a restart does not revert it.
    """
    seen = services.store.keys.configured_policies
    for name, spec in services.settings.policies.items():
        digest = hashlib.sha256(orjson.dumps(spec.model_dump(mode="json"))).hexdigest()
        try:
            if await services.store.redis.hget(seen, name) == digest.encode():
                continue
            check_policy_hosts(spec, services.settings, field=f"policies.{name}.base_urls")
            await services.policies.put(name, spec)
            await services.store.redis.hset(seen, name, digest)
        except RedisError as error:
            _LOG.warning("policies not registered yet: %s", error, extra={"action": "redis_unavailable"})
            return False
        except RequestError as error:
            raise SettingsError(error.message) from error
    return True
