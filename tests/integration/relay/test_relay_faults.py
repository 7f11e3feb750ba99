"""The relay when parts of it fail: a server, a client, their connections, the whole Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from gym.client.exchange import Request, RetryPolicy
from gym.client.over_redis import AsyncRedisLines, SyncRedisLines
from gym.client.transport import AsyncTransport
from gym.errors import Unavailable
from gym.relay.address import DEFAULT_PREFIX, farm_channels
from gym.relay.caller import RelayAnswer, RelayRequest
from gym.relay.frames import MAX_FRAME_BYTES, Asker, Frame, decode
from gym.relay.server import RelayServer
from gym.state.redis.embedded import EmbeddedRedis

pytestmark = pytest.mark.anyio
GET = RelayRequest(method="GET", path="/v1/queues")
POLICY = RetryPolicy(retries=8, first_s=0.05, most_s=0.5)
BOUND_S = 60.0


class App:
    """App that counts its requests and answers when permitted."""

    def __init__(self, body: bytes = b"{}") -> None:
        self.asked = 0
        self.left = 0
        self.body = body
        self.free = asyncio.Event()
        self.free.set()
        self.bodies: list[bytes] = []

    async def __call__(self, _scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        self.asked += 1
        self.bodies.append(body)
        gone, free = asyncio.ensure_future(receive()), asyncio.ensure_future(self.free.wait())
        await asyncio.wait([gone, free], return_when=asyncio.FIRST_COMPLETED)
        self.left += gone.done()
        gone.cancel()
        free.cancel()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": self.body})


@asynccontextmanager
async def serving(redis_url: str, app: Any) -> AsyncIterator[asyncio.Task[None]]:
    server = RelayServer(redis_url, farm_channels(redis_url, DEFAULT_PREFIX), app, timeout_s=5)
    task = asyncio.create_task(server.serve())
    await asyncio.wait_for(server.listening.wait(), BOUND_S)
    yield task
    task.cancel()
    await asyncio.wait([task])


@asynccontextmanager
async def client(url: str) -> AsyncIterator[AsyncTransport]:
    transport = AsyncTransport(url, api_key=None, timeout_s=30, policy=POLICY)
    yield transport
    await transport.close()


def call(*, repeatable: bool = True) -> Any:
    answer = yield Request(method="GET", path="/v1/queues", repeatable=repeatable)
    return answer.json()


async def until(condition: Callable[[], Any], what: str) -> None:
    try:
        async with asyncio.timeout(BOUND_S):
            while not condition():  # noqa: ASYNC110  what is waited for lies in Redis and other tasks
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"not within {BOUND_S} s: {what}") from None


async def disconnect_subscribers(redis_url: str) -> None:
    async with Redis.from_url(redis_url) as redis:
        await redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")


async def test_a_call_whose_server_ends_is_answered_by_another(redis_url: str, new_client: Any) -> None:
    first, second = App(b'"first"'), App(b'"second"')
    first.free.clear()
    async with serving(redis_url, first) as task, client(new_client(redis_url)) as trainer:
        waiting = asyncio.create_task(trainer.run(call()))
        await until(lambda: first.asked, "the first server is asked")
        async with serving(redis_url, second):
            task.cancel()
            assert await asyncio.wait_for(waiting, BOUND_S) == "second"


async def test_a_call_that_may_have_been_done_is_not_asked_again(redis_url: str, new_client: Any) -> None:
    first, second = App(), App()
    first.free.clear()
    async with serving(redis_url, first) as task, client(new_client(redis_url)) as trainer:
        waiting = asyncio.create_task(trainer.run(call(repeatable=False)))
        await until(lambda: first.asked, "the first server is asked")
        async with serving(redis_url, second):
            task.cancel()
            with pytest.raises(Unavailable) as caught:
                await asyncio.wait_for(waiting, BOUND_S)
    assert caught.value.code == "unreachable"
    assert second.asked == 0


async def test_connections_that_break_while_a_call_waits_cost_a_repeat_and_no_answer(
    redis_url: str, new_client: Any
) -> None:
    app = App(b'"answered"')
    app.free.clear()
    async with serving(redis_url, app), client(new_client(redis_url)) as trainer:
        calls = [asyncio.create_task(trainer.run(call())) for _ in range(5)]
        await until(lambda: app.asked == 5, "five calls wait")
        await disconnect_subscribers(redis_url)
        await until(lambda: app.left == 5, "the five are seen to have gone")
        app.free.set()
        assert await asyncio.wait_for(asyncio.gather(*calls), BOUND_S) == ["answered"] * 5
    assert app.asked == 10


async def test_a_client_that_stops_waiting_frees_the_server(redis_url: str, new_client: Any) -> None:
    app = App()
    app.free.clear()
    async with serving(redis_url, app), client(new_client(redis_url)) as trainer:
        waiting = asyncio.create_task(trainer.run(call()))
        await until(lambda: app.asked, "the server is asked")
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await until(lambda: app.left, "the app sees a disconnect")
        app.free.set()
        assert await trainer.run(call()) == {}


async def test_a_redis_that_is_killed_and_comes_back_is_found_again(tmp_path: Path, new_client: Any) -> None:
    app = App(b'"answered"')
    app.free.clear()
    redis = EmbeddedRedis(tmp_path)
    redis.start()
    try:
        # clients' users are forgotten with the process, so this client is the farm's own user
        async with serving(redis.url, app), client(redis.url) as trainer:
            waiting = asyncio.create_task(trainer.run(call()))
            await until(lambda: app.asked, "the server is asked")
            assert redis.pid is not None
            redis.stop(timeout_s=0)
            app.free.set()
            await asyncio.to_thread(redis.start)
            assert await asyncio.wait_for(waiting, BOUND_S) == "answered"
            assert await trainer.run(call()) == "answered"
    finally:
        redis.stop()


@pytest.mark.parametrize("size_bytes", [0, 1, 5 * 2**20 + 3])
async def test_bodies_of_any_size_arrive_whole_both_ways(redis_url: str, new_client: Any, size_bytes: int) -> None:
    body = bytes(range(256)) * (size_bytes // 256 + 1)
    app = App(body[:size_bytes])
    url = new_client(redis_url)
    ask = RelayRequest(
        method="POST", path="/v1/batches", body=[body[: size_bytes // 3], body[size_bytes // 3 : size_bytes]]
    )
    async with serving(redis_url, app):
        lines = AsyncRedisLines(url, timeout_s=30)
        blocking = SyncRedisLines(url, timeout_s=30)
        answers = [await lines.ask(ask, silence_s=30), await asyncio.to_thread(blocking.ask, ask, silence_s=30)]
        await lines.close()
        blocking.close()
    assert [isinstance(answer, RelayAnswer) and answer.body == app.body for answer in answers] == [True, True]
    assert [received == app.body for received in app.bodies] == [True, True]


async def test_a_full_redis_still_carries_calls_both_ways(redis_url: str, new_client: Any) -> None:
    app = App(b"x" * 2**20)
    ask = RelayRequest(method="POST", path="/v1/batches", body=[b"y" * 2**20])
    url = new_client(redis_url)
    async with serving(redis_url, app), Redis.from_url(redis_url) as farm:
        lines = AsyncRedisLines(url, timeout_s=30)
        await farm.config_set("maxmemory", "1")
        try:
            answer = await lines.ask(ask, silence_s=30)
        finally:
            await farm.config_set("maxmemory", "0")
        await lines.close()
    assert isinstance(answer, RelayAnswer)
    assert answer.body == app.body


async def test_nothing_stays_in_redis(redis_url: str, new_client: Any) -> None:
    async with serving(redis_url, App(b"x" * 2**20)):
        lines = AsyncRedisLines(new_client(redis_url), timeout_s=30)
        assert isinstance(await lines.ask(GET, silence_s=30), RelayAnswer)
        async with Redis.from_url(redis_url) as redis:
            assert await redis.dbsize() == 0
        await lines.close()


async def test_where_no_farm_listens_the_client_says_so_after_its_retries(redis_url: str, new_client: Any) -> None:
    async with client(new_client(redis_url)) as trainer:
        with pytest.raises(Unavailable, match=r"tried 9 times: no farm listens") as caught:
            await trainer.run(call())
    assert caught.value.code == "unreachable"


async def test_what_a_client_publishes_that_is_no_call_disturbs_nobody(redis_url: str, new_client: Any) -> None:
    url = new_client(redis_url)
    ask = farm_channels(redis_url, DEFAULT_PREFIX).ask(Asker(scope="submit", name="trainer"), "SERVER")
    async with serving(redis_url, App(b'"answered"')), client(url) as trainer, Redis.from_url(url, protocol=2) as junk:
        line = "0123456789abcdef"
        here = await server_of(url)
        channel = ask.replace("SERVER", here.text("server")).encode()
        head = {"line": line, "method": "GET", "path": "/", "headers": {}}
        for data in (
            b"",
            b"\xff",
            b"[" * 5000,
            b"x" * (2 * MAX_FRAME_BYTES),
            Frame("ask", "b", {**head, "path": "//[", "query": "\u00e9"}).encode(),
            Frame("ask", "c", {**head, "headers": {"x": {}, "\u20ac": "\u20ac\n"}}).encode(),
            Frame("body", "d", {"line": line}).encode(),
            Frame("more", "d", {"line": line, "pieces": 10**9}).encode(),
        ):
            assert await junk.publish(channel, data) == 1
        await junk.publish(channel.replace(b"trainer:", b"trainer:\xff\xfe:"), b"{}")
        assert await trainer.run(call()) == "answered"
        assert (await server_of(url)).text("server") == here.text("server")


async def server_of(url: str) -> Frame:
    """Return the server that answers now."""
    channels = farm_channels(url, DEFAULT_PREFIX)
    async with Redis.from_url(url, protocol=2) as redis, redis.pubsub() as pubsub:
        await pubsub.subscribe(channels.tell("trainer", "another"))
        await redis.publish(
            channels.ask(Asker(scope="submit", name="trainer")), Frame("hello", "a", {"line": "another"}).encode()
        )
        while True:
            message = await pubsub.get_message(timeout=BOUND_S)
            if message["type"] == "message" and (frame := decode(message["data"])) is not None:
                return frame


async def test_a_server_with_too_many_calls_says_when_to_come_back(redis_url: str, new_client: Any) -> None:
    app = App()
    app.free.clear()
    lines = AsyncRedisLines(new_client(redis_url), timeout_s=30)
    server = RelayServer(redis_url, farm_channels(redis_url, DEFAULT_PREFIX), app, max_calls=1)
    task = asyncio.create_task(server.serve())
    await asyncio.wait_for(server.listening.wait(), BOUND_S)
    waiting = asyncio.create_task(lines.ask(GET, silence_s=30))
    await until(lambda: app.asked, "the one call waits")
    busy = await lines.ask(GET, silence_s=30)
    app.free.set()
    assert isinstance(await waiting, RelayAnswer)
    assert isinstance(busy, RelayAnswer)
    assert (busy.status, busy.headers["retry-after"]) == (503, "2")
    await lines.close()
    task.cancel()
    await asyncio.wait([task])


async def test_uploads_that_one_client_begins_and_leaves_hold_up_no_other(redis_url: str, new_client: Any) -> None:
    app = App(b'"taken"')
    greedy, other = new_client(redis_url, "greedy"), new_client(redis_url, "other")
    channels = farm_channels(redis_url, DEFAULT_PREFIX)
    async with serving(redis_url, app), Redis.from_url(greedy, protocol=2) as redis, redis.pubsub() as pubsub:
        await pubsub.subscribe(channels.tell("greedy", "line"))
        asker = Asker(scope="submit", name="greedy")
        await redis.publish(channels.ask(asker), Frame("hello", "hello", {"line": "line"}).encode())
        server = (await frame_of(pubsub, "here")).text("server")
        head = {"line": "line", "method": "POST", "path": "/v1/queues", "headers": {}, "last": False}
        for number in range(64):
            assert await redis.publish(channels.ask(asker, server), Frame("ask", f"u{number}", head, b"start").encode())
        await frame_of(pubsub, "more")
        lines = AsyncRedisLines(other, timeout_s=30)
        upload = RelayRequest(method="POST", path="/v1/queues", body=[b"x" * 200_000, b"y" * 800_000])
        answer = await asyncio.wait_for(lines.ask(upload, silence_s=30), BOUND_S)
        await lines.close()
    assert isinstance(answer, RelayAnswer)
    assert len(app.bodies[-1]) == 1_000_000


async def test_calls_of_one_client_leave_room_for_others(redis_url: str, new_client: Any) -> None:
    app = App()
    app.free.clear()
    server = RelayServer(redis_url, farm_channels(redis_url, DEFAULT_PREFIX), app, max_calls=8)
    task = asyncio.create_task(server.serve())
    await asyncio.wait_for(server.listening.wait(), BOUND_S)
    greedy, other = (AsyncRedisLines(new_client(redis_url, name), timeout_s=30) for name in ("greedy", "other"))
    waiting = [asyncio.create_task(greedy.ask(GET, silence_s=30)) for _ in range(12)]
    await until(lambda: app.asked == 4 and sum(each.done() for each in waiting) == 8, "eight of twelve are refused")
    late = asyncio.create_task(other.ask(GET, silence_s=30))
    await until(lambda: app.asked == 5, "the other client is heard")
    app.free.set()
    answers = [await each for each in (*waiting, late)]
    assert sorted(each.status for each in answers if isinstance(each, RelayAnswer)) == [200] * 5 + [503] * 8
    for lines in (greedy, other):
        await lines.close()
    task.cancel()
    await asyncio.wait([task])


async def test_a_call_that_begins_with_too_much_is_413(redis_url: str, new_client: Any) -> None:
    app = App()
    async with serving(redis_url, app):
        lines = AsyncRedisLines(new_client(redis_url), timeout_s=30)
        answer = await lines.ask(RelayRequest(method="GET", path="/", headers={"x": "y" * 100_000}), silence_s=30)
        await lines.close()
    assert isinstance(answer, RelayAnswer)
    assert (answer.status, app.asked) == (413, 0)


async def frame_of(pubsub: Any, kind: str) -> Frame:
    """Return the next frame of a kind that is sent to a client."""
    async with asyncio.timeout(BOUND_S):
        while True:
            message = await pubsub.get_message(timeout=BOUND_S)
            if message is not None and message["type"] == "message":
                frame = decode(message["data"])
                if frame is not None and frame.kind == kind:
                    return frame
