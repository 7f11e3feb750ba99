"""Calls that wait while every endpoint has as many as it may: in their order, within their deadline."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gym.errors import ModelUnreachable
from gym.model_client.routing.call_queue import QueuePlace
from gym.model_client.routing.endpoint import Endpoint
from gym.model_client.routing.endpoint_pool import EndpointPool

pytestmark = pytest.mark.anyio


def waiting(client: Any) -> int:
    """Calls that wait for room; none before the first call has come."""
    return int(client.load().get("p", {}).get("waiting", 0))


async def test_no_endpoint_has_more_calls_than_it_may(servers, client, policies, ask, eventually):
    both = [await servers(), await servers()]
    for server in both:
        server.default = "hang"
    policy = policies.put("p", [server.url for server in both], max_concurrency=3)
    calls = [asyncio.create_task(client.respond(ask(policy, sticky_key=f"g{n % 2}"))) for n in range(20)]
    await eventually(lambda: waiting(client) == 14)
    await eventually(lambda: [len(server.requests) for server in both] == [3, 3])
    assert client.load()["p"]["in_flight"] == 6
    for server in both:
        server.release.set()
    replies = await asyncio.gather(*calls)
    assert {reply.facts.attempts for reply in replies} == {1}
    assert waiting(client) == 0


def test_one_that_has_just_come_gets_no_room_that_others_wait_for():
    pool = EndpointPool(["http://e:1"], clock=lambda: 1.0, max_concurrency=1)
    running = pool.acquire("g")
    assert running is not None
    first, second = pool.line.join(), pool.line.join()
    pool.release(running, "answered", began=0.0)
    assert pool.acquire("new") is None
    assert pool.acquire("g", place=second) is None
    assert pool.acquire("g", place=first) is running


async def test_calls_are_sent_in_the_order_in_which_they_came(server, client, policies, ask, eventually):
    policy = policies.put("p", [server.url], max_concurrency=1)
    server.script = ["hang"]
    calls = []
    for n in range(6):
        calls.append(asyncio.create_task(client.respond(ask(policy, rollout_id=f"r{n}"))))
        await asyncio.sleep(0)
    await server.hanging.wait()
    server.release.set()
    await calls[0]
    late = asyncio.create_task(client.respond(ask(policy, rollout_id="late")))
    await asyncio.gather(*calls, late)
    assert [request.headers["x-request-id"] for request in server.requests] == [
        *(f"r{n}-1-0" for n in range(6)),
        "late-1-0",
    ]


async def test_a_call_waits_no_longer_than_its_deadline(server, client, policies, ask, shapes):
    policy = policies.put("p", [server.url], max_concurrency=1)
    server.script = [shapes.HANG]
    first = asyncio.create_task(client.respond(ask(policy)))
    await server.hanging.wait()
    with pytest.raises(ModelUnreachable, match=r"its deadline has passed: 1 calls wait .* max_concurrency \(1\)"):
        await client.respond(ask(policy, within_s=0.3))
    assert waiting(client) == 0
    assert len(server.requests) == 1
    server.release.set()
    await first


async def test_a_call_that_is_cancelled_holds_nobody_up(server, client, policies, ask, shapes, eventually):
    policy = policies.put("p", [server.url], max_concurrency=1)
    server.script = [shapes.HANG]
    first, second, third = [asyncio.create_task(client.respond(ask(policy))) for _ in range(3)]
    await eventually(lambda: waiting(client) == 2)
    second.cancel()
    await eventually(lambda: waiting(client) == 1)
    server.release.set()
    await asyncio.gather(first, third)
    assert len(server.requests) == 2


async def test_waiting_for_room_is_no_stall(server, client, policies, ask, shapes):
    policy = policies.put("p", [server.url], max_concurrency=1)
    server.script = [shapes.HANG]
    first = asyncio.create_task(client.respond(ask(policy)))
    await server.hanging.wait()
    heard = asyncio.Event()
    second = asyncio.create_task(client.respond(ask(policy, on_held=heard.set)))
    await asyncio.wait_for(heard.wait(), 10)
    server.release.set()
    await asyncio.gather(first, second)


async def test_a_higher_limit_lets_waiting_calls_go(server, client, policies, ask, eventually):
    policy = policies.put("p", [server.url], max_concurrency=1)
    server.default = "hang"
    calls = [asyncio.create_task(client.respond(ask(policy))) for _ in range(5)]
    await eventually(lambda: waiting(client) == 4)
    policies.put("p", [server.url], max_concurrency=3)
    await eventually(lambda: len(server.requests) == 3)
    policies.put("p", [server.url])
    await eventually(lambda: len(server.requests) == 5)
    server.release.set()
    await asyncio.gather(*calls)


async def test_a_pause_holds_calls_that_wait_for_room_too(server, client, policies, ask, eventually):
    policy = policies.put("p", [server.url], max_concurrency=1)
    server.default = "hang"
    calls = [asyncio.create_task(client.respond(ask(policy))) for _ in range(3)]
    await eventually(lambda: waiting(client) == 2)
    policies.change("p", paused="drain")
    server.release.set()
    await calls[0]
    await eventually(lambda: client.load()["p"]["held"] == 2)
    assert client.load()["p"]["in_flight"] == 0
    assert len(server.requests) == 1
    policies.change("p", paused=None)
    await asyncio.gather(*calls)


async def test_calls_in_the_line_get_their_room_where_an_endpoint_dies(servers, clients, policies, ask, eventually):
    client = await clients(health_check_s=0.2)
    first, second = await servers(), await servers()
    first.default = second.default = "hang"
    policy = policies.put("p", [first.url, second.url], max_concurrency=1)
    calls = [asyncio.create_task(client.respond(ask(policy, sticky_key=f"g{n}"))) for n in range(8)]
    await eventually(lambda: waiting(client) == 6)
    await first.stop()
    second.release.set()
    assert {reply.facts.endpoint for reply in await asyncio.gather(*calls)} <= {f"{second.url}/v1", f"{first.url}/v1"}
    assert len(second.requests) >= 7


@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.lists(st.tuples(st.sampled_from(["come", "go", "leave"]), st.integers(0, 9))),
)
def test_nobody_overtakes_whatever_happens(count, limit, steps):
    pool = EndpointPool([f"http://e{n}:1" for n in range(count)], clock=lambda: 1.0, max_concurrency=limit)
    running: list[Endpoint] = []
    line: list[QueuePlace] = []
    for step, number in steps:
        if step == "come":
            endpoint = pool.acquire(f"g{number}")
            if endpoint is not None:
                assert not line
                running.append(endpoint)
            else:
                assert pool.has_line()
                line.append(pool.line.join())
        elif step == "go" and running:
            pool.release(running.pop(number % len(running)), "answered", began=0.0)
            for place in list(line):
                endpoint = pool.acquire("any", place=place)
                if endpoint is None:
                    break
                pool.leave_line(place)
                line.remove(place)
                running.append(endpoint)
        elif step == "leave" and line:
            pool.leave_line(line.pop(number % len(line)))
        assert all(endpoint.in_flight <= limit for endpoint in pool.endpoints)
        assert Counter(running) == {e: e.in_flight for e in pool.endpoints if e.in_flight}
        assert len(pool.line) == len(line)
        assert not line or len(running) == count * limit
