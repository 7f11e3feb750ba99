"""A proxy process over real sockets, with a real Redis and scripted model servers behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest
import uvicorn

from api.proxy.app import create_app
from gym.captures.recording import Captures
from gym.config import load_settings
from gym.policy import PolicySpec
from gym.state.policies import Policies
from gym.state.redis.store import Store
from gym.testing.model_server.server import ScriptedModelOptions, ScriptedModelServer


class Farm:
    """Parts of a test: model servers, policies, captures and proxies."""

    def __init__(self, redis_url: str, stack: AsyncExitStack) -> None:
        self.redis_url = redis_url
        self.store = Store.connect(redis_url)
        self.policies = Policies(self.store)
        self.captures = Captures(self.store)
        self._stack = stack

    async def model(self, **options: Any) -> ScriptedModelServer:
        """A model server, not registered yet."""
        return await self._stack.enter_async_context(ScriptedModelServer(ScriptedModelOptions(**options)))

    async def serve(self, *urls: str, name: str = "policy", **spec: Any) -> None:
        """Register a policy at these addresses."""
        await self.policies.put(name, PolicySpec(base_urls=list(urls), model="m", **spec))

    async def proxy(self, **settings: Any) -> str:
        """Start a proxy; its base URL."""
        app = create_app(load_settings(**{"redis": {"url": self.redis_url}, **settings}))
        server = uvicorn.Server(
            uvicorn.Config(app, host="127.0.0.1", port=0, lifespan="on", ws="none", log_config=None, access_log=False)
        )
        task = asyncio.create_task(server.serve())
        while not server.started:  # noqa: ASYNC110  uvicorn has no event for it
            await asyncio.sleep(0.005)

        async def stop() -> None:
            server.should_exit = True
            await task

        self._stack.push_async_callback(stop)
        return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"


@pytest.fixture
async def farm_of() -> AsyncIterator[Callable[[str], Farm]]:
    """Makes farms on a Redis."""
    async with AsyncExitStack() as stack:

        def make(redis_url: str) -> Farm:
            made = Farm(redis_url, stack)
            stack.push_async_callback(made.store.close)
            return made

        yield make


@pytest.fixture
def farm(redis_url: str, farm_of: Callable[[str], Farm]) -> Farm:
    return farm_of(redis_url)


@pytest.fixture
async def model(farm: Farm) -> ScriptedModelServer:
    """One model server, which serves the default policy in version 3."""
    server = await farm.model()
    await farm.serve(server.url, version=3)
    return server


@pytest.fixture
async def proxy(farm: Farm, model: ScriptedModelServer) -> str:
    return await farm.proxy()


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=20) as client:
        yield client


@pytest.fixture
def eventually() -> Callable[..., Any]:
    """Waits until something is so, for 5 s at most."""

    async def wait(condition: Callable[[], bool], within_s: float = 5.0) -> None:
        async with asyncio.timeout(within_s):
            while not condition():  # noqa: ASYNC110  a condition of another task's state
                await asyncio.sleep(0.01)

    return wait
