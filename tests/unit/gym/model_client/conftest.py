"""A model server that does as each test says, and a client of it."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import orjson
import pytest
from aiohttp import web

from gym.model_client.client import ModelRequest, PolicyClient
from gym.model_client.routing.served_model import ServedModel
from gym.model_client.settings import ModelSettings
from gym.policy import PolicySpec

HANG = "hang"
DISCONNECT = "disconnect"


def completion(text: str = "hello", **fields: Any) -> dict[str, Any]:
    """A chat completion without token ids; `choice` fields go into its choice."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    choice |= fields.pop("choice", {})
    tokens = len((choice.get("logprobs") or {}).get("content") or "ab")
    usage = {"prompt_tokens": 3, "completion_tokens": tokens, "total_tokens": 3 + tokens}
    return {"id": "c", "object": "chat.completion", "model": "m", "choices": [choice], "usage": usage} | fields


def error(status: int, message: str = "broken", **fields: Any) -> web.Response:
    """An error answer in vLLM's shape."""
    body = {"error": {"message": message, "type": "Error", "param": None, "code": status} | fields}
    return web.Response(status=status, body=orjson.dumps(body), content_type="application/json")


class StubServer:
    """Answers by script, then with a plain completion. A step is a status, an answer, a body, HANG or DISCONNECT.

    `default` is the step after the end of the script; `health` is what `GET /health` answers, or HANG.
    """

    def __init__(self) -> None:
        self.script: list[Any] = []
        self.default: Any = None
        self.health: Any = 200
        self.checks: list[web.Request] = []
        self.requests: list[web.Request] = []
        self.bodies: list[dict[str, Any]] = []
        self.tokenized: list[dict[str, Any]] = []
        self.tokens: list[int] | None = None
        self.hanging = asyncio.Event()
        self.client_left = asyncio.Event()
        self.release = asyncio.Event()
        self.url = ""
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application(client_max_size=2**28)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/responses", self._chat)
        app.router.add_post("/tokenize", self._tokenize)
        app.router.add_get("/health", self._check)
        app.router.add_get("/v1/models", self._check)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        port = int(self.url.rpartition(":")[2]) if self.url else 0  # the same when it is started again
        site = web.TCPSite(self._runner, "127.0.0.1", port)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        self.release.set()
        if self._runner is not None:
            await self._runner.cleanup()

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        self.bodies.append(orjson.loads(await request.read()))
        step = self.script.pop(0) if self.script else self.default or completion()
        if callable(step):
            step = step(request)
        if step is HANG:
            self.hanging.set()
            try:
                await self.release.wait()
            except asyncio.CancelledError:
                self.client_left.set()
                raise
            step = completion()
        if step is DISCONNECT:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if isinstance(step, int):
            return error(step)
        if isinstance(step, dict):
            return web.Response(body=orjson.dumps(step), content_type="application/json")
        if isinstance(step, bytes):
            return web.Response(body=step)
        assert isinstance(step, web.StreamResponse)
        return step

    async def _check(self, request: web.Request) -> web.Response:
        self.checks.append(request)
        status = self.health if request.path == "/health" else 200
        if status is HANG:
            await self.release.wait()
        return web.Response(status=status if isinstance(status, int) else 200)

    async def _tokenize(self, request: web.Request) -> web.Response:
        self.tokenized.append(orjson.loads(await request.read()))
        if self.tokens is None:
            return error(404)
        body = orjson.dumps({"count": len(self.tokens), "max_model_len": 100, "tokens": self.tokens})
        return web.Response(body=body, content_type="application/json")


class Policies(dict[str, ServedModel]):
    """The records that a process would keep fresh from Redis."""

    def put(self, name: str, urls: list[str], **fields: Any) -> ServedModel:
        """Register a policy; a field that is not the model's is one of its spec."""
        names = {field.name for field in dataclasses.fields(ServedModel)}
        own = {key: fields.pop(key) for key in names & fields.keys()}
        before = self.get(name)
        spec = PolicySpec(base_urls=urls, model=fields.pop("model", "m"), **fields)
        values = {"paused": None, "version": None, "revision": before.revision + 1 if before else 1} | own
        self[name] = ServedModel(name=name, spec=spec, **values)
        return self[name]

    def change(self, name: str, **fields: Any) -> None:
        """Change fields of a record."""
        self[name] = dataclasses.replace(self[name], **fields)


@pytest.fixture
def policies() -> Policies:
    return Policies()


@pytest.fixture
async def servers() -> AsyncIterator[Callable[[], Any]]:
    """Starts stub servers, and stops them after the test."""
    async with AsyncExitStack() as stack:

        async def start() -> StubServer:
            server = StubServer()
            await server.start()
            stack.push_async_callback(server.stop)
            return server

        yield start


@pytest.fixture
async def server(servers: Callable[[], Any]) -> StubServer:
    started: StubServer = await servers()
    return started


@pytest.fixture
async def clients(policies: Policies) -> AsyncIterator[Callable[..., Any]]:
    """Makes clients whose retries do not wait; settings as keywords."""
    async with AsyncExitStack() as stack:

        async def make(**settings: Any) -> PolicyClient:
            client = PolicyClient(ModelSettings(**settings), policies, jitter=lambda: 0.0)
            return await stack.enter_async_context(client)

        yield make


@pytest.fixture
async def client(clients: Callable[..., Any]) -> PolicyClient:
    made: PolicyClient = await clients()
    return made


def request(policy: ServedModel, *, within_s: float = 20.0, **fields: Any) -> ModelRequest:
    """A model call on a short conversation."""
    values: dict[str, Any] = {
        "params": {"input": "hi"},
        "sticky_key": "group",
        "rollout_id": "batch:0",
        "attempt": 1,
        "turn": 0,
        "deadline": asyncio.get_running_loop().time() + within_s,
    }
    return ModelRequest(policy=policy, **(values | fields))


async def eventually(condition: Callable[[], bool], within_s: float = 30.0) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110  what is waited for has no event
            await asyncio.sleep(0.01)


@pytest.fixture(name="eventually")
def _eventually() -> Callable[..., Any]:
    return eventually


@pytest.fixture
def ask() -> Callable[..., ModelRequest]:
    return request


@pytest.fixture
def shapes() -> Any:
    """Return the shapes of answers for scripts; test modules do not import each other."""

    class Shapes:
        HANG = HANG
        DISCONNECT = DISCONNECT

    Shapes.completion = staticmethod(completion)  # type: ignore[attr-defined]  # a namespace
    Shapes.error = staticmethod(error)  # type: ignore[attr-defined]  # a namespace
    return Shapes


@pytest.fixture
async def dead_url() -> str:
    """Return a base URL that refuses connections."""
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return f"http://127.0.0.1:{port}"
