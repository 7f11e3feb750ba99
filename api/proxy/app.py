"""ASGI app of the proxy: routes, lifespan, keys. Stateless except for calls in progress."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from types import TracebackType
from typing import Any, Self

from starlette.types import ASGIApp, Receive, Scope, Send

from api.proxy.admission import Admission
from api.proxy.calls import Calls, ProxyCall
from api.proxy.capture import CapturedCalls
from api.proxy.dialects import DIALECTS, GEMINI, Dialect
from api.proxy.errors import Shape, problem_of
from api.proxy.exchange import AsgiExchange, ClientLeft
from api.proxy.own_name import OwnName
from api.shutdown import EndRequests, Shutdown, shutting_down
from gym.agents.outside.keys import Grant
from gym.captures.recording import Captures
from gym.config import Settings
from gym.errors import NotFound, RequestError, SettingsError
from gym.host_rules import policy_rules
from gym.ids import new_id
from gym.jsontypes import JsonObject
from gym.model_client.client import PolicyClient
from gym.state.policies import PolicyCache
from gym.state.redis.driver import RedisError
from gym.state.redis.eviction import watch_for_eviction
from gym.state.redis.store import Store, end_tasks
from gym.wire.gemini.request import count_request
from gym.wire.gemini.stream import ArrayFrames

OPEN_PATHS = frozenset({"/healthz"})
_ROLLOUT = re.compile(r"/rollouts/([^/]+)(/v1(?:beta|alpha)?/.+)")
_GEMINI = re.compile(r"/v1(?:beta|alpha)?/models/(.+):(generateContent|streamGenerateContent|countTokens)")
COUNT = "/v1/messages/count_tokens"
_LOG = logging.getLogger(__name__)


class Parts:
    """Objects with the lifetime of the process: connections, cached policies, background tasks."""

    def __init__(self, settings: Settings, shutdown: Shutdown) -> None:
        if settings.redis.url is None:
            raise SettingsError("the proxy needs redis.url (FARM_REDIS_URL)")
        self._name = new_id("proxy")
        self._redis_url, self._prefix = settings.redis.url, settings.redis.prefix
        self._store = Store.connect(
            settings.redis.url, prefix=settings.redis.prefix, timeout_s=settings.redis.timeout_s
        )
        self._stack = AsyncExitStack()
        self.policies = PolicyCache(self._store, self._name)
        self.captures = Captures(self._store)
        self.client = PolicyClient(settings.model, self.policies, hosts=policy_rules(settings))
        self.admission = Admission(settings.api.keys, self._store)
        self._own_name = OwnName(self._store, self._name)
        self.calls = Calls(settings, self.client, self.policies, self._own_name)
        self.captured = CapturedCalls(self.calls, self.captures, shutdown)
        self._shutdown = shutdown
        self._services: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        """Connect. Without Redis the process starts anyway and waits for it."""
        await self._stack.enter_async_context(self.client)
        try:
            await self.policies.refresh()
            await self._own_name.learn()
        except RedisError as error:
            _LOG.warning("policies not known yet: %s", error, extra={"action": "redis_unavailable"})
        loop = asyncio.get_running_loop()
        self._services = [
            loop.create_task(self.policies.keep_fresh(self._lanes), name="policies"),
            loop.create_task(self.captures.keep_leases(), name="leases"),
            loop.create_task(self._own_name.keep_learning(), name="own name"),
            loop.create_task(watch_for_eviction(self._redis_url, self._prefix), name="watch for eviction"),
            loop.create_task(self._refuse_held_at_shutdown(), name="shutdown"),
        ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections and withdraw this process, so that no pause waits for it."""
        await end_tasks(self._services)
        with suppress(RedisError):
            await self._store.redis.hdel(self._store.keys.policies_load, self._name)
        await self._stack.aclose()
        await self._store.close()

    async def _refuse_held_at_shutdown(self) -> None:
        await self._shutdown.wait()
        self.client.refuse_held()

    def _lanes(self) -> dict[str, tuple[int, int]]:
        return {name: (int(load["in_flight"]), int(load["held"])) for name, load in self.client.load().items()}


class ProxyApp:
    """ASGI application of the proxy."""

    def __init__(self, settings: Settings, shutdown: Shutdown) -> None:
        self._settings = settings
        self._shutdown = shutdown
        self._parts: Parts | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI scope."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._serve(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            self._shutdown.serve()
            async with Parts(self._settings, self._shutdown) as self._parts:
                await send({"type": "lifespan.startup.complete"})
                await receive()
                self._shutdown.begin()
        except SettingsError as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.shutdown.complete"})

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = AsgiExchange(scope, receive, send)
        path, rollout_id = _place(scope)
        gemini = _GEMINI.fullmatch(path)
        shape = _shape(path, exchange)
        try:
            grant = None
            if path not in OPEN_PATHS:
                grant = await self._started().admission.check(scope["method"], scope["headers"], rollout_id)
            if path in DIALECTS and scope["method"] == "POST":
                await self._run(exchange, await self._read(exchange, DIALECTS[path], grant), rollout_id, grant)
            elif gemini is not None and scope["method"] == "POST":
                await self._gemini(exchange, scope, gemini, rollout_id, grant)
            elif path == COUNT and scope["method"] == "POST":
                count = await self._count(exchange, DIALECTS["/v1/messages"], grant, _uncounted)
                await exchange.answer(200, {"input_tokens": count})
            elif path == "/v1/models" and scope["method"] == "GET":
                await exchange.answer(200, self._models(shape, grant))
            elif path == "/healthz" and scope["method"] in ("GET", "HEAD"):
                await exchange.answer(200, {"status": "alive"})
            else:
                _refuse(path, scope["method"])
        except ClientLeft:
            return
        except RequestError as error:
            problem = problem_of(error)
            await exchange.answer(problem.status, problem.body(shape), problem.headers)
        except Exception as error:  # noqa: BLE001  the ASGI edge
            problem = problem_of(error)
            if not exchange.started:
                await exchange.answer(problem.status, problem.body(shape), problem.headers)

    def _started(self) -> Parts:
        if self._parts is None:
            raise RuntimeError("the lifespan of the app has not begun")
        return self._parts

    async def _gemini(
        self, exchange: AsgiExchange, scope: Scope, path: re.Match[str], rollout_id: str | None, grant: Grant | None
    ) -> None:
        model, method = path.groups()
        written: JsonObject = {"model": model, "stream": method == "streamGenerateContent"}
        if method == "countTokens":
            count = await self._count(exchange, GEMINI, grant, lambda body: count_request({**body, "model": model}))
            await exchange.answer(200, {"totalTokens": count})
            return
        call = await self._read(exchange, GEMINI, grant, written=written)
        if written["stream"] and b"alt=sse" not in scope["query_string"].split(b"&"):
            call.array = ArrayFrames()
            exchange.stream_type = call.array.content_type
        await self._run(exchange, call, rollout_id, grant)

    async def _count(
        self,
        exchange: AsgiExchange,
        dialect: Dialect,
        grant: Grant | None,
        prepare: Callable[[JsonObject], JsonObject],
    ) -> int:
        """The tokens of a request's prompt. Nothing is sampled, so nothing is recorded."""
        call = await self._read(exchange, dialect, grant, prepare=prepare)
        async with exchange.attended():
            return await self._started().calls.count(call)

    async def _read(self, exchange: AsgiExchange, dialect: Dialect, grant: Grant | None, **options: Any) -> ProxyCall:
        parts = self._started()
        granted = None
        if grant is not None and grant.policy is None:
            granted = await parts.admission.inline_policy(grant)
        name = grant.policy if grant is not None else None
        return await parts.calls.read(exchange, dialect, name=name, policy=granted, **options)

    async def _run(self, exchange: AsgiExchange, call: ProxyCall, rollout_id: str | None, grant: Grant | None) -> None:
        parts = self._started()
        async with exchange.attended():
            try:
                if rollout_id is None:
                    await parts.calls.run(call)
                elif grant is None:
                    await parts.captured.run(call, rollout_id)
                else:
                    await _while_granted(parts, call, rollout_id, grant)
            except Exception as error:  # noqa: BLE001  the ASGI edge: it may have to end a stream
                await call.fail(problem_of(error))
            except asyncio.CancelledError:
                if not self._shutdown.has_begun():
                    raise
                await call.fail(problem_of(shutting_down()))  # the grace is over

    def _models(self, shape: Shape, grant: Grant | None) -> JsonObject:
        """Return the list of policies; an agent sees only the one of its key."""
        records = self._started().policies.records()
        if grant is not None:
            records = [record for record in records if record.name == grant.policy]
        if shape == "anthropic":
            models = [
                {"type": "model", "id": r.name, "display_name": r.spec.model, "created_at": "1970-01-01T00:00:00Z"}
                for r in records
            ]
            ends = {"first_id": records[0].name if records else None, "last_id": records[-1].name if records else None}
            return {"data": models, "has_more": False, **ends}
        return {
            "object": "list",
            "data": [
                {"id": r.name, "object": "model", "created": 0, "owned_by": "farm", "root": r.spec.model}
                for r in records
            ],
        }


async def _while_granted(parts: Parts, call: ProxyCall, rollout_id: str, grant: Grant) -> None:
    """Run an agent's call; cancel it if the agent's attempt ends before the model has answered."""
    run = asyncio.ensure_future(parts.captured.run(call, rollout_id, grant))
    over = asyncio.ensure_future(parts.admission.until_over(grant))
    try:
        await asyncio.wait({run, over}, return_when=asyncio.FIRST_COMPLETED)
        if not run.done():
            raise over.result()
        await run
    finally:
        over.cancel()
        if not run.done():
            run.cancel()
            await asyncio.wait({run})
        _ = run.cancelled() or run.exception()  # retrieve the exception: the error already raised takes precedence


def _place(scope: Scope) -> tuple[str, str | None]:
    """Split a path into the API path and the rollout id, if it begins with one."""
    path: str = scope["path"]
    match = _ROLLOUT.fullmatch(path) if path.startswith("/rollouts/") else None
    return (path, None) if match is None else (match[2], match[1])


def _shape(path: str, exchange: AsgiExchange) -> Shape:
    if path.startswith(("/v1beta/", "/v1alpha/")) or _GEMINI.fullmatch(path):
        return "google"
    if path in ("/v1/messages", COUNT) or exchange.header(b"anthropic-version") is not None:
        return "anthropic"
    return "openai"


def _uncounted(body: JsonObject) -> JsonObject:
    return {name: value for name, value in body.items() if name != "stream"}


def _refuse(path: str, method: str) -> None:
    known = (
        "POST "
        + ", ".join(DIALECTS)
        + f", {COUNT}, /v1beta/models/MODEL:generateContent (streamGenerateContent, countTokens)"
        + ", GET /v1/models, GET /healthz"
    )
    raise NotFound("not_found", f"there is no {method} {path[:200]} here; there are {known}, also below /rollouts/ID")


def create_app(settings: Settings, shutdown: Shutdown | None = None) -> ASGIApp:
    """The ASGI app. It connects when it starts up; without Redis it starts too, and answers 503 or 404."""
    shutdown = shutdown or Shutdown()
    return EndRequests(ProxyApp(settings, shutdown), shutdown)
