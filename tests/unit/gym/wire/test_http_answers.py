"""Answers of servers that the farm does not trust are bounded in size before they are held."""

from __future__ import annotations

import asyncio
import gzip
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from gym.environments.adapters.openenv_socket import OpenEnvSocket, SocketTimeouts
from gym.errors import EnvironmentUnavailable
from gym.wire.http_answers import PLAIN, AnswerTooLarge, read_within

pytestmark = pytest.mark.anyio

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
LIMIT = 2**20


@pytest.fixture
async def serve() -> AsyncIterator[Callable[[Handler], Awaitable[URL]]]:
    async with AsyncExitStack() as stack:

        async def start(handler: Handler) -> URL:
            app = web.Application()
            app.router.add_route("*", "/{path:.*}", handler)
            runner = web.AppRunner(app, shutdown_timeout=0.1)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            return URL(f"http://127.0.0.1:{runner.addresses[0][1]}")

        yield start


async def _read(url: URL) -> bytes:
    async with (
        aiohttp.ClientSession(headers=PLAIN, auto_decompress=False) as session,
        session.get(url) as response,
    ):
        return await read_within(response, LIMIT)


async def test_a_body_of_exactly_the_bound_is_read(serve):
    async def handler(_: web.Request) -> web.Response:
        return web.Response(body=b"x" * LIMIT)

    assert len(await _read(await serve(handler))) == LIMIT


async def test_a_declared_length_beyond_the_bound_is_refused_before_it_comes(serve):
    async def handler(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"content-length": str(300 * 2**20)})
        await answer.prepare(request)
        await asyncio.sleep(30)
        return answer

    async with asyncio.timeout(10):
        with pytest.raises(AnswerTooLarge):
            await _read(await serve(handler))


async def test_a_body_without_end_is_cut(serve):
    async def handler(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        for _ in range(300):
            await answer.write(b"x" * 2**20)
        return answer

    with pytest.raises(AnswerTooLarge):
        await _read(await serve(handler))


async def test_a_compressed_body_is_not_unpacked(serve):
    packed = gzip.compress(b" " * 64 * 2**20)

    async def handler(request: web.Request) -> web.Response:
        assert request.headers["accept-encoding"] == "identity"
        return web.Response(body=packed, headers={"content-encoding": "gzip"})

    url = await serve(handler)
    tracemalloc.start()
    try:
        assert await _read(url) == packed
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()


async def test_an_openenv_server_that_redirects_is_not_followed(serve):
    followed: list[str] = []

    async def elsewhere(request: web.Request) -> web.Response:
        followed.append(request.path)
        return web.Response()

    target = await serve(elsewhere)

    async def handler(_: web.Request) -> web.Response:
        raise web.HTTPTemporaryRedirect(str(target))

    with pytest.raises(EnvironmentUnavailable, match="redirect"):
        await OpenEnvSocket.connect(await serve(handler), SocketTimeouts())
    assert followed == []


async def test_an_openenv_server_that_floods_its_socket_loses_the_session(serve):
    async def handler(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        while not socket.closed:
            await socket.send_str('{"type":"observation","data":{}}')
        return socket

    async def ask_until_it_fails() -> None:
        while True:
            await asyncio.sleep(0.05)
            await connected.ask("step", {}, within_s=5)

    connected = await OpenEnvSocket.connect(await serve(handler), SocketTimeouts())
    try:
        async with asyncio.timeout(20):
            with pytest.raises(EnvironmentUnavailable):
                await ask_until_it_fails()
    finally:
        await connected.close()
