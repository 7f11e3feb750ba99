"""A scripted server with default options and a client of it."""

from collections.abc import AsyncIterator

import aiohttp
import pytest

from gym.testing.model_server.server import ScriptedModelServer


@pytest.fixture
async def server(anyio_backend: str) -> AsyncIterator[ScriptedModelServer]:
    async with ScriptedModelServer() as running:
        yield running


@pytest.fixture
async def http(server: ScriptedModelServer) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(server.url) as session:
        yield session
