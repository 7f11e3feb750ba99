"""Answers to calls in progress when the proxy shuts down."""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn

from api.local.serving import QuietServer
from api.proxy.app import create_app
from api.shutdown import Shutdown
from gym.config import load_settings

pytestmark = pytest.mark.anyio

AT_ONCE_S = 2.0
REQUESTS: dict[str, dict[str, Any]] = {
    "/v1/responses": {"model": "any", "input": "What is 4 + 3 ="},
    "/v1/chat/completions": {"model": "any", "messages": [{"role": "user", "content": "What is 4 + 3 ="}]},
    "/v1/messages": {"model": "any", "max_tokens": 99, "messages": [{"role": "user", "content": "What is 4 + 3 ="}]},
}


class Ending:
    """A proxy in this process and its end."""

    def __init__(self, server: QuietServer, shutdown: Shutdown, url: str, task: asyncio.Task[None]) -> None:
        self.server, self.shutdown, self.url, self.task = server, shutdown, url, task

    async def end(self) -> None:
        """Begin the shutdown, as SIGTERM does."""
        self.server.should_exit = True
        self.server._signalled.set()
        await self.task


@asynccontextmanager
async def ending_proxy(redis_url: str, *, grace_s: float):
    shutdown = Shutdown(grace_s)
    app = create_app(load_settings(redis={"url": redis_url}), shutdown)
    config = uvicorn.Config(app, loop="asyncio", lifespan="on", ws="none", log_config=None)
    server = QuietServer(config, shutdown)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        ending = Ending(server, shutdown, url, asyncio.create_task(server._serve([listener])))
        while not server.started:  # noqa: ASYNC110  uvicorn has no event for it
            await asyncio.sleep(0.005)
        yield ending
        await ending.end()


@pytest.mark.parametrize("rollout", ["", "/rollouts/r"])
@pytest.mark.parametrize("path", REQUESTS)
async def test_a_call_held_by_a_pause_is_asked_to_come_again_at_once(farm, model, http, redis_url, path, rollout):
    async with ending_proxy(redis_url, grace_s=30) as proxy:
        await farm.policies.pause("policy", "hold", timeout_s=10)
        call = asyncio.create_task(http.post(f"{proxy.url}{rollout}{path}", json=REQUESTS[path]))
        while not (await farm.policies.load("policy", 0)).held:  # noqa: ASYNC110  another process's state
            await asyncio.sleep(0.01)
        began = time.monotonic()
        await proxy.end()
        answer = await call
    assert time.monotonic() - began < AT_ONCE_S
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert "error" in answer.json()
    assert model.stats["requests"] == 0


async def test_the_repeat_of_a_call_under_way_is_asked_to_come_again_at_once(farm, model, http, redis_url, eventually):
    model.behave(latency_s=1.0)
    path = "/rollouts/r/v1/chat/completions"
    async with ending_proxy(redis_url, grace_s=10) as proxy:
        post = lambda: http.post(f"{proxy.url}{path}", json=REQUESTS["/v1/chat/completions"])  # noqa: E731
        first = asyncio.create_task(post())
        await eventually(lambda: model.stats["in_flight"] == 1)
        repeat = asyncio.create_task(post())
        await eventually(lambda: proxy.shutdown.requests == 2)
        await asyncio.sleep(0.1)
        ended = asyncio.create_task(proxy.end())
        assert ((await repeat).status_code, first.done()) == (503, False)
        assert (await first).status_code == 200
        await ended


async def test_a_call_that_ends_within_the_grace_is_answered(farm, model, http, redis_url, eventually):
    model.behave(latency_s=0.5)
    async with ending_proxy(redis_url, grace_s=10) as proxy:
        body = REQUESTS["/v1/chat/completions"]
        call = asyncio.create_task(http.post(f"{proxy.url}/v1/chat/completions", json=body))
        await eventually(lambda: model.stats["in_flight"] == 1)
        await proxy.end()
        assert (await call).status_code == 200


@pytest.mark.parametrize("rollout", ["", "/rollouts/r"])
@pytest.mark.parametrize("path", REQUESTS)
async def test_a_call_that_outlasts_the_grace_is_asked_to_come_again(
    farm, model, http, redis_url, eventually, path, rollout
):
    model.behave(latency_s=60)
    async with ending_proxy(redis_url, grace_s=0.3) as proxy:
        call = asyncio.create_task(http.post(f"{proxy.url}{rollout}{path}", json=REQUESTS[path]))
        await eventually(lambda: model.stats["in_flight"] == 1)
        await proxy.end()
        answer = await call
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert "shutting down" in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", REQUESTS)
async def test_a_stream_that_outlasts_the_grace_ends_with_an_error_event(farm, model, http, redis_url, path):
    model.behave(token_latency_s=0.5)
    async with ending_proxy(redis_url, grace_s=0.3) as proxy:
        body = {**REQUESTS[path], "stream": True}
        said = b""
        async with http.stream("POST", f"{proxy.url}{path}", json=body) as response:
            async for piece in response.aiter_bytes():
                said += piece
                if len(said) == len(piece):
                    ended = asyncio.create_task(proxy.end())
        await ended
    assert said.endswith(b"\n\n")
    assert b"shutting down" in said
