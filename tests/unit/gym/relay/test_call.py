"""A relay call as the farm's app sees it."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from gym.relay.call import EXTENSION, App, RelayCall
from gym.relay.frames import PIECE_BYTES, WINDOW, Asker, Frame, decode
from gym.relay.shares import Shares

pytestmark = pytest.mark.anyio
TRAINER = Asker(scope="submit", name="trainer")
HEADERS = {"content-type": "application/json", "Authorization": "Bearer x", "x-api-key": "y"}


class Client:
    """Recorder of the frames sent to a client."""

    def __init__(self, **changes: Any) -> None:
        head = {"method": "POST", "path": "/v1/a%20b", "query": "q=1", "headers": HEADERS, "last": True} | changes
        self.frames: list[Frame] = []
        self.listens = True
        self.grants = Shares(total=1, each=1, reserved=1)
        self.call = RelayCall(Frame("ask", "c", head, b"start"), TRAINER, "tell", self.publish, self.grants)

    async def publish(self, _channel: str, data: bytes) -> int:
        if not self.listens:
            return 0
        frame = decode(data)
        assert frame is not None
        self.frames.append(frame)
        return 1

    def start(self, app: App) -> asyncio.Task[None]:
        return asyncio.create_task(self.call.run(app))


async def settle() -> None:
    """Let every task run as far as it can."""
    for _ in range(20 * WINDOW):
        await asyncio.sleep(0)


async def answer(send: Any, *pieces: bytes) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    for piece in pieces:
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body"})


async def test_the_app_sees_a_request_as_over_http_without_the_keys_of_another() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.extend([scope, await receive()])
        await answer(send, b"fine")

    client = Client()
    await client.start(app)
    scope, request = seen
    assert (scope["method"], scope["path"], scope["query_string"]) == ("POST", "/v1/a b", b"q=1")
    assert dict(scope["headers"]) == {b"host": b"farm", b"content-type": b"application/json"}
    assert scope["extensions"] == {EXTENSION: TRAINER}
    assert request == {"type": "http.request", "body": b"start", "more_body": False}
    first, last = client.frames
    assert (first.kind, first.head["status"], first.payload) == ("answer", 200, b"fine")
    assert (last.kind, last.head) == ("part", {"part": 1, "last": True})


async def test_the_body_is_asked_for_as_the_app_reads_it() -> None:
    taken: list[bytes] = []

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        more = True
        while more:
            message = await receive()
            taken.append(message["body"])
            more = message["more_body"]
        await answer(send)

    client = Client(last=False)
    task = client.start(app)
    for number in (1, 2):
        await settle()
        assert [frame.kind for frame in client.frames] == ["more"] * number
        client.call.hear(Frame("body", "c", {"last": number == 2}, b"%d" % number))
    await task
    assert taken == [b"start", b"1", b"2"]
    assert client.grants.take(TRAINER.name)


async def test_a_piece_that_nobody_asked_for_is_passed_over() -> None:
    async def app(_scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["body"] == b"start"
        assert (await receive())["body"] == b"asked for"
        await answer(send)

    client = Client(last=False)
    client.call.hear(Frame("body", "c", {"last": True}, b"unasked"))
    task = client.start(app)
    await settle()
    client.call.hear(Frame("body", "c", {"last": True}, b"asked for"))
    await task
    assert client.frames[-1].head["last"]


async def test_an_answer_waits_for_its_reader_and_is_all_there_in_the_end() -> None:
    body = bytes(range(256)) * (3 * WINDOW * PIECE_BYTES // 256)

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    client = Client()
    task = client.start(app)
    await settle()
    assert len(client.frames) == WINDOW
    while not task.done():
        client.call.hear(Frame("more", "c", {"pieces": WINDOW // 2}))
        await settle()
    assert b"".join(frame.payload for frame in client.frames) == body
    assert [frame.head["part"] for frame in client.frames] == list(range(3 * WINDOW))


async def test_a_client_that_left_is_a_disconnect_and_is_told_nothing() -> None:
    async def app(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        assert (await receive())["type"] == "http.disconnect"
        await answer(send, b"too late")

    client = Client()
    task = client.start(app)
    await settle()
    client.call.leave()
    await task
    assert client.frames == []


async def test_a_client_that_left_during_its_answer_does_not_hold_the_app() -> None:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await answer(send, *[b"x"] * (2 * WINDOW))

    client = Client()
    task = client.start(app)
    await settle()
    client.call.leave()
    await task
    assert len(client.frames) == WINDOW


@pytest.mark.parametrize("failure", ["nobody listens", "redis is away"])
async def test_an_answer_that_cannot_be_told_counts_as_a_client_that_left(failure: str) -> None:
    told: list[str] = []

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await answer(send, b"a", b"b")
        told.append((await receive())["type"])

    async def away(_channel: str, _data: bytes) -> int:
        raise RedisConnectionError("gone")

    client = Client()
    client.listens = False
    if failure == "redis is away":
        head = {"method": "GET", "path": "/", "headers": {}, "last": True}
        client.call = RelayCall(Frame("ask", "c", head), TRAINER, "tell", away, client.grants)
    await client.start(app)
    assert told == ["http.disconnect"]


@pytest.mark.parametrize(
    "changes", [{"method": "BREW"}, {"method": 1}, {"path": "v1"}, {"path": "/\u00fc"}, {"headers": []}]
)
async def test_a_request_that_is_none_is_answered_400(changes: dict[str, Any]) -> None:
    async def app(_scope: Any, _receive: Any, _send: Any) -> None:
        raise AssertionError("the app must not see it")

    client = Client(**changes)
    await client.start(app)
    [frame] = client.frames
    assert frame.head["status"] == 400
    assert orjson.loads(frame.payload)["error"]["code"] == "malformed_ask"


@pytest.mark.parametrize("started", [False, True])
async def test_a_fault_of_the_app_ends_its_call_alone_and_is_told(
    caplog: pytest.LogCaptureFixture, started: bool
) -> None:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        if started:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise ZeroDivisionError

    client = Client()
    await client.start(app)
    assert [frame.kind for frame in client.frames] == ["answer"] * started + ["lost"]
    assert "POST /v1/a b failed" in caplog.text
