"""Responses to requests under way when the api is asked to shut down."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgpack
import orjson
import pytest
import uvicorn

from api.app import create_app
from api.local.serving import QuietServer
from api.shutdown import Shutdown
from gym.client import connect
from gym.config import Settings
from gym.state.policies import Policies
from gym.state.redis.store import Store

pytestmark = [pytest.mark.anyio, pytest.mark.both_carriers]

AT_ONCE_S = 3.0
POLICY = "policy"


class Ending:
    """An api server in this process, its clients, and its shutdown."""

    def __init__(self, server: QuietServer, shutdown: Shutdown, task: asyncio.Task[None]) -> None:
        self.server = server
        self.shutdown = shutdown
        self.task = task
        self.http: httpx.AsyncClient
        self.url = ""

    async def end(self) -> None:
        """Shut down as SIGTERM does."""
        self.server.should_exit = True
        self.server._signalled.set()
        await self.task


@asynccontextmanager
async def ending_api(settings: Settings, *, grace_s: float = 4.0) -> AsyncIterator[Ending]:
    shutdown = Shutdown(grace_s)
    config = uvicorn.Config(
        create_app(settings, shutdown), loop="asyncio", http="httptools", ws="none", lifespan="on", log_config=None,
        timeout_graceful_shutdown=10,
    )  # fmt: skip
    server = QuietServer(config, shutdown)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ending = Ending(server, shutdown, asyncio.create_task(server._serve([listener])))
        ending.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        while not server.started:  # noqa: ASYNC110  uvicorn has no event for it
            await asyncio.sleep(0.005)
        async with httpx.AsyncClient(base_url=ending.url, timeout=30) as ending.http:
            yield ending
        await ending.end()


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[Ending]:
    async with ending_api(settings) as ending:
        yield ending


@pytest.fixture
async def asker(
    carrier: str, api: Ending, settings: Settings, new_client: Any, over_redis: Any
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the ending api, over HTTP and over Redis."""
    if carrier == "http":
        yield api.http
        return
    transport = over_redis(new_client(settings.redis.url))
    async with httpx.AsyncClient(transport=transport, base_url="http://farm", timeout=30) as client:
        yield client


async def submitted(http: httpx.AsyncClient, row: dict[str, Any], **options: Any) -> str:
    answer = await http.post("/v1/batches", json={"rows": [row], "policy": POLICY, **options})
    assert answer.status_code == 201, answer.text
    batch_id: str = answer.json()["batch_id"]
    return batch_id


async def answered_at_end(api: Ending, asked: Callable[[], Any], until_waiting: Callable[[], Any]) -> httpx.Response:
    """Return the response to a request that waits at the shutdown; it comes at once."""
    asking = asyncio.create_task(asked())
    await until_waiting()
    began = time.monotonic()
    ended = asyncio.create_task(api.end())
    answer: httpx.Response = await asking
    assert time.monotonic() - began < AT_ONCE_S
    await ended
    return answer


async def test_a_long_poll_ends_with_an_empty_page_and_the_same_cursor(
    api: Ending, asker: httpx.AsyncClient, row: dict[str, Any], worker: Any
) -> None:
    batch_id = await submitted(asker, row)
    path = f"/v1/batches/{batch_id}/results"
    answer = await answered_at_end(
        api, lambda: asker.get(path, params={"wait": 30, "after": "5-0"}), worker.until_blocked
    )
    assert (answer.status_code, answer.json()) == (200, {"items": [], "next_after": "5-0", "done": False})


async def test_a_packed_long_poll_ends_with_an_empty_page(api: Ending, row: dict[str, Any], worker: Any) -> None:
    batch_id = await submitted(api.http, row)
    path, packed = f"/v1/batches/{batch_id}/results?view=training&wait=30", {"accept": "application/msgpack"}
    answer = await answered_at_end(api, lambda: api.http.get(path, headers=packed), worker.until_blocked)
    assert answer.status_code == 200
    page = msgpack.unpackb(answer.content)
    assert (page["items"], page["done"]) == ([], False)


async def test_a_wait_for_a_lease_ends_with_an_empty_lease(
    api: Ending, asker: httpx.AsyncClient, row: dict[str, Any], worker: Any
) -> None:
    batch_id = await submitted(asker, row)
    path, body = f"/v1/batches/{batch_id}/lease?wait=30", {"consumer": "trainer"}
    answer = await answered_at_end(api, lambda: asker.post(path, json=body), worker.until_blocked)
    assert (answer.status_code, answer.json()["items"], answer.json()["done"]) == (200, [], False)


async def test_a_wait_for_events_ends_with_where_the_batch_stands(
    api: Ending, asker: httpx.AsyncClient, row: dict[str, Any], worker: Any
) -> None:
    batch_id = await submitted(asker, row)
    path = f"/v1/batches/{batch_id}/events?wait=30"
    answer = await answered_at_end(api, lambda: asker.get(path), worker.until_blocked)
    assert answer.status_code == 200
    assert answer.text.startswith("event: batch\n")
    assert answer.text.endswith("\n\n")


async def test_a_pause_that_waits_is_asked_to_come_again(api: Ending, asker: httpx.AsyncClient, redis_url: str) -> None:
    store = Store.connect(redis_url)
    await Policies(store).report("a-slow-process", 0, {}, ttl_ms=60_000)

    async def until_paused() -> None:
        while (await Policies(store).get(POLICY)).paused is None:  # noqa: ASYNC110  another process's state
            await asyncio.sleep(0.01)

    body = {"mode": "drain", "timeout_s": 60}
    answer = await answered_at_end(api, lambda: asker.post(f"/v1/policies/{POLICY}/pause", json=body), until_paused)
    await store.close()
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "shutting_down")
    assert int(answer.headers["retry-after"]) >= 1


async def test_a_posted_row_is_asked_to_come_again(api: Ending, row: dict[str, Any], worker: Any) -> None:
    body = {"responses_create_params": row["responses_create_params"], "agent_ref": {"name": "weather"}}
    answer = await answered_at_end(api, lambda: api.http.post("/run", json=body), worker.until_blocked)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "shutting_down")
    assert int(answer.headers["retry-after"]) >= 1


async def test_a_stream_of_results_ends_with_the_cursor_to_go_on_from(
    api: Ending, row: dict[str, Any], worker: Any
) -> None:
    batch_id = await submitted(api.http, row, num_samples=2)
    claims = await worker.claim(batch_id)
    await worker.end(claims[0])
    path, lines = f"/v1/batches/{batch_id}/results", {"accept": "application/x-ndjson"}
    answer = await answered_at_end(api, lambda: api.http.get(path, headers=lines), worker.until_blocked)
    first, last = [orjson.loads(line) for line in answer.text.splitlines() if line]
    assert first["outcome"] == "succeeded"
    assert last["done"] is False
    async with ending_api(api.server.config.app.state.settings) as other:  # type: ignore[union-attr]  # it is the app
        await worker.end(claims[1])
        rest = await other.http.get(path, params={"after": last["next_after"]}, headers=lines)
    assert [orjson.loads(line)["rollout_id"] for line in rest.text.splitlines()] == [f"{batch_id}:{claims[1].member}"]


async def test_a_stream_of_events_ends_between_events(api: Ending, row: dict[str, Any], worker: Any) -> None:
    batch_id = await submitted(api.http, row, num_samples=2)
    await worker.end((await worker.claim(batch_id))[0])
    answer = await answered_at_end(api, lambda: api.http.get(f"/v1/batches/{batch_id}/events"), worker.until_blocked)
    assert answer.text.endswith("\n\n")
    assert "\nid: " in answer.text


async def test_a_request_that_does_not_end_within_the_grace_is_asked_to_come_again(settings: Settings) -> None:
    async with ending_api(settings, grace_s=0.3) as api:
        reader, writer = await asyncio.open_connection(*api.url.removeprefix("http://").split(":"))
        head = (
            b"POST /v1/batches HTTP/1.1\r\nhost: farm\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n"
        )
        writer.write(head + b'{"rows": [')
        while not api.shutdown.requests:  # noqa: ASYNC110  until the server has begun to read it
            await asyncio.sleep(0.01)
        ended = asyncio.create_task(api.end())
        async with asyncio.timeout(AT_ONCE_S):
            status, *_, body = (await reader.read()).split(b"\r\n")
        writer.close()
        await ended
    assert status == b"HTTP/1.1 503 Service Unavailable"
    assert orjson.loads(body)["error"]["code"] == "shutting_down"


async def test_a_request_under_way_is_answered(api: Ending, row: dict[str, Any]) -> None:
    read = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield orjson.dumps({"rows": [row], "policy": POLICY})[:-1]
        read.set()
        await asyncio.sleep(0.3)
        yield b"}"

    answer = await answered_at_end(api, lambda: api.http.post("/v1/batches", content=body(), headers={
        "content-type": "application/json"}), read.wait)  # fmt: skip
    assert answer.status_code == 201


async def test_a_trainer_waits_through_a_rolling_restart(
    carrier: str, settings: Settings, row: dict[str, Any], worker: Any, new_client: Any
) -> None:
    async with ending_api(settings) as first, ending_api(settings) as second:
        batch_id = await submitted(first.http, row)
        urls = {"http": first.url, "redis": new_client(settings.redis.url)}
        async with connect(urls[carrier]) as farm:
            results = farm.batch(batch_id).results()
            waiting = asyncio.create_task(results.page(wait_s=20))
            await worker.until_blocked()
            await first.end()
            if carrier == "redis":  # the same connection finds the other server
                assert not waiting.done() or waiting.result() == ()
                await worker.end_all(batch_id)
                found = await waiting or await results.page(wait_s=20)
                assert [result.batch_id for result in found] == [batch_id]
            else:
                assert await waiting == ()
        assert (await second.http.get("/healthz")).status_code == 200
