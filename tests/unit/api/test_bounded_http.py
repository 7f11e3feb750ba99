"""Connections to the api and the proxy from clients without a key."""

from __future__ import annotations

import asyncio
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from typing import Any

import orjson
import pytest
import uvicorn
from uvicorn.server import ServerState

from api import bounded_http as bounds
from api.bounded_http import HEAD_BYTES, HEADERS, PIPELINED, bounded_http

pytestmark = pytest.mark.anyio

GET = b"GET /healthz HTTP/1.1\r\nHost: farm\r\n\r\n"
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Serve = Callable[..., Awaitable[int]]
_OPENED: list[asyncio.StreamWriter] = []  # closed after each test


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answer with the number of headers, once the body is there; `/early` does not read the body."""
    more = scope["path"] != "/early"
    size = 0
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size += len(message["body"])
        more = message["more_body"]
    if scope["path"] == "/slow":
        await asyncio.sleep(0.2)
    body = orjson.dumps({"headers": len(scope["headers"]), "body": size})
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Start servers and return their port."""
    async with AsyncExitStack() as stack:

        async def start(most_connections: int = 100) -> int:
            config = uvicorn.Config(app, http=bounded_http(most_connections), ws="none", log_config=None)
            config.load()
            state = ServerState()
            loop = asyncio.get_running_loop()
            kind = config.http_protocol_class
            server = await loop.create_server(
                lambda: kind(config=config, server_state=state, app_state={}),  # type: ignore[call-arg]  # uvicorn's
                "127.0.0.1",
                0,
            )
            stack.callback(server.close)
            stack.callback(lambda: [each.transport.abort() for each in list(state.connections)])
            port: int = server.sockets[0].getsockname()[1]
            return port

        yield start
    while _OPENED:
        writer = _OPENED.pop()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def _open(port: int, sent: bytes = b"") -> Streams:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    _OPENED.append(writer)
    writer.write(sent)
    return reader, writer


async def _answer(streams: Streams) -> tuple[int, dict[str, Any]]:
    """Return status and body of a response."""
    reader, _ = streams
    async with asyncio.timeout(20):
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        return int(head.split()[1]), orjson.loads(await reader.readexactly(length))


async def _ended(streams: Streams) -> bytes:
    """Return the bytes that arrive until the server closes."""
    async with asyncio.timeout(20):
        try:
            return await streams[0].read()
        except ConnectionError:
            return b""


async def _flood(streams: Streams, block: bytes, total: int) -> None:
    """Send until the server closes the connection."""
    try:
        for _ in range(total // len(block)):
            streams[1].write(block)
            await streams[1].drain()
    except ConnectionError:
        pass


@pytest.mark.parametrize(
    ("begun", "block"),
    [
        pytest.param(b"GET / HTTP/1.1\r\nX: ", b"x" * 2**16, id="one header"),
        pytest.param(b"GET / HTTP/1.1\r\n", b"X-A: b\r\n" * 2**13, id="many headers"),
        pytest.param(b"GET /", b"x" * 2**16, id="the target"),
        pytest.param(b"GET / HTTP/1.1\r\n", b"x" * 2**16, id="a header's name"),
    ],
)
async def test_a_head_without_end_is_431_and_holds_up_nobody(serve, begun, block):
    port = await serve()
    tracemalloc.start()
    try:
        attacker = await _open(port, begun)
        flood = asyncio.ensure_future(_flood(attacker, block, 16 * 2**20))
        refusal = asyncio.ensure_future(_answer(attacker))
        slowest = 0.0
        for _ in range(20):
            began = time.perf_counter()
            assert (await _answer(await _open(port, GET)))[0] == 200
            slowest = max(slowest, time.perf_counter() - began)
        await flood
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (await refusal)[0] == 431
    assert peak < 8 * 2**20
    assert slowest < 2.0


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nX: " + b"x" * HEAD_BYTES + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * (HEADERS + 1) + b"\r\n",
        b"GET /" + b"x" * HEAD_BYTES + b" HTTP/1.1\r\n\r\n",
    ],
    ids=["large", "many", "target"],
)
async def test_a_head_that_is_too_large_is_431_though_it_came_at_once(serve, head):
    status, body = await _answer(await _open(await serve(), head))
    assert (status, body["error"]["code"]) == (431, "head_too_large")


async def test_a_head_within_the_bounds_is_answered(serve):
    large = b"X: " + b"x" * (HEAD_BYTES // 2) + b"\r\n"
    head = b"GET / HTTP/1.1\r\n" + large + b"X: y\r\n" * (HEADERS - 1) + b"\r\n"
    assert await _answer(await _open(await serve(), head)) == (200, {"headers": HEADERS, "body": 0})


async def test_a_head_that_is_not_complete_in_time_is_408(serve, monkeypatch):
    monkeypatch.setattr(bounds, "HEAD_S", 0.2)
    streams = await _open(await serve(), GET[:-4])
    status, body = await _answer(streams)
    assert (status, body["error"]["code"]) == (408, "head_stalled")
    assert await _ended(streams) == b""


async def test_a_head_that_comes_byte_by_byte_is_408_too(serve, monkeypatch):
    monkeypatch.setattr(bounds, "HEAD_S", 0.3)
    streams = await _open(await serve(), b"GET /")

    async def drip() -> None:
        while True:
            streams[1].write(b"x")
            await asyncio.sleep(0.02)

    dripping = asyncio.ensure_future(drip())
    try:
        assert (await _answer(streams))[0] == 408
    finally:
        dripping.cancel()


@pytest.mark.parametrize("sent", [b"", b"\r\n\r\n"], ids=["nothing", "empty lines"])
async def test_a_connection_without_a_request_is_closed_in_time(serve, monkeypatch, sent):
    monkeypatch.setattr(bounds, "HEAD_S", 0.2)
    assert await _ended(await _open(await serve(), sent)) == b""


async def test_empty_lines_behind_an_answer_do_not_keep_a_connection(serve, monkeypatch):
    monkeypatch.setattr(bounds, "HEAD_S", 0.2)
    streams = await _open(await serve(), GET)
    assert (await _answer(streams))[0] == 200
    streams[1].write(b"\r\n")
    assert await _ended(streams) == b""


async def test_a_slow_request_within_the_bounds_is_answered(serve):
    streams = await _open(await serve(), b"POST / HTTP/1.1\r\nContent-")
    for piece in (b"Length: 4\r\n", b"\r\n", b"ab", b"cd"):
        await asyncio.sleep(0.02)
        streams[1].write(piece)
    assert await _answer(streams) == (200, {"headers": 1, "body": 4})
    streams[1].write(GET)
    assert (await _answer(streams))[0] == 200


async def test_a_large_body_and_the_beginning_of_the_next_request_may_come_together(serve):
    body = b"x" * 500_000
    streams = await _open(await serve())
    streams[1].write(b"POST / HTTP/1.1\r\nContent-Length: 500000\r\n\r\n" + body + GET[:10])
    assert await _answer(streams) == (200, {"headers": 1, "body": 500_000})
    streams[1].write(GET[10:])
    assert (await _answer(streams))[0] == 200


@pytest.mark.parametrize("block", [b"X-T: y\r\n" * 2**13, b"x" * 2**16], ids=["trailers", "a trailer"])
async def test_trailers_without_end_close_the_connection(serve, block):
    streams = await _open(await serve(), b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX: ")
    flood = asyncio.ensure_future(_flood(streams, block, 64 * 2**20))
    assert await _ended(streams) == b""
    await flood


async def test_trailers_are_no_headers(serve):
    request = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    streams = await _open(await serve(), request)
    await asyncio.sleep(0.05)
    streams[1].write(b"1\r\na\r\n0\r\nx-api-key: y\r\n\r\n")
    assert await _answer(streams) == (200, {"headers": 1, "body": 1})


async def test_the_rest_of_a_refused_body_is_drained_for_a_while_only(serve, monkeypatch):
    monkeypatch.setattr(bounds, "DRAIN_S", 0.3)
    streams = await _open(await serve(), b"POST /early HTTP/1.1\r\nContent-Length: 1000000000\r\n\r\n")
    assert (await _answer(streams))[0] == 200

    async def drip() -> None:
        while True:
            streams[1].write(b"x")
            await asyncio.sleep(0.02)

    dripping = asyncio.ensure_future(drip())
    try:
        await _ended(streams)
    finally:
        dripping.cancel()


async def test_requests_without_end_on_one_connection_are_not_queued(serve):
    streams = await _open(await serve(), GET.replace(b"/healthz", b"/slow") + GET * (2 * PIPELINED))
    assert (await _ended(streams)).count(b"HTTP/1.1 200") <= 1


async def test_a_few_requests_at_once_are_answered_in_order(serve):
    streams = await _open(await serve(), GET * (PIPELINED // 2))
    for _ in range(PIPELINED // 2):
        assert (await _answer(streams))[0] == 200


async def test_half_requests_make_room_for_whole_ones(serve):
    port = await serve(most_connections=5)
    halves = [await _open(port, GET[:20]) for _ in range(20)]
    assert (await _answer(await _open(port, GET)))[0] == 200
    assert await _ended(halves[0]) == b""


async def test_where_every_connection_is_at_work_another_is_503(serve):
    port = await serve(most_connections=3)
    busy = [await _open(port, b"POST / HTTP/1.1\r\nContent-Length: 1\r\n\r\n") for _ in range(3)]
    await asyncio.sleep(0.1)
    status, body = await _answer(await _open(port))
    assert (status, body["error"]["code"]) == (503, "too_many_connections")
    for streams in busy:
        streams[1].write(b"x")
        assert (await _answer(streams))[0] == 200
    assert (await _answer(await _open(port, GET)))[0] == 200
