"""A farm in memory, reached over HTTP and over Redis."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from gym.relay.address import DEFAULT_PREFIX, farm_channels
from gym.relay.server import RelayServer
from gym.testing.stand_ins.fake_farm import FakeFarm


class Gateway:
    """ASGI app that passes each request to an HTTP server, and drops the connections that the server drops."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        target = scope["raw_path"].decode() + "?" + scope["query_string"].decode()
        headers = scope["headers"][1:]
        try:
            answer = await asyncio.to_thread(self._http.request, scope["method"], target, content=body, headers=headers)
        except httpx.RequestError:
            return
        headers = [
            (name.encode(), answer.headers[name].encode()) for name in ("retry-after",) if name in answer.headers
        ]
        await send({"type": "http.response.start", "status": answer.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": answer.content})


@contextmanager
def relayed(redis_url: str, app: Any) -> Iterator[None]:
    """Answer clients over Redis with an app, on a separate event loop."""

    async def serve() -> None:
        server = RelayServer(redis_url, farm_channels(redis_url, DEFAULT_PREFIX), app)
        task = asyncio.create_task(server.serve())
        await server.listening.wait()
        running.set()
        await asyncio.to_thread(ended.wait)
        task.cancel()
        await asyncio.wait([task])

    running, ended = threading.Event(), threading.Event()
    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert running.wait(30)
        yield
    finally:
        ended.set()
        thread.join(30)


@pytest.fixture
def fake(carrier: str, request: pytest.FixtureRequest, new_client: Callable[..., str]) -> Iterator[FakeFarm]:
    """Entered; its results come in pages of three."""
    with FakeFarm(page_limit=3) as fake:
        if carrier == "http":
            yield fake
            return
        redis_url = request.getfixturevalue("redis_url")
        with httpx.Client(base_url=fake.url, timeout=10) as http, relayed(redis_url, Gateway(http)):
            fake.url = new_client(redis_url)
            yield fake
