"""Findings of active health checks, and their effect on the calls in flight."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gym.errors import ModelUnreachable
from gym.model_client.forward import ChatCall
from gym.testing.model_server.server import ScriptedModelOptions, ScriptedModelServer

pytestmark = pytest.mark.anyio

HANG = "hang"  # behaviour of a stub server
SOON_S = 0.4  # between checks here; a busy machine still answers within it


def states(client: Any, name: str = "p") -> dict[str, str]:
    return {endpoint["url"]: endpoint["state"] for endpoint in client.load()[name]["endpoints"]}


async def home_of(client: Any, ask: Any, policy: Any, servers: list[Any]) -> tuple[Any, list[Any]]:
    """The server that the calls of these tests stick to, and the others."""
    reply = await client.respond(ask(policy))
    home = next(server for server in servers if reply.facts.endpoint.startswith(server.url))
    return home, [server for server in servers if server is not home]


async def test_a_dead_endpoint_is_out_before_a_call_fails_and_in_again_soon_after_it_is_back(
    servers, clients, policies, ask, eventually
):
    client = await clients(health_check_s=SOON_S)
    first, second = await servers(), await servers()
    policy = policies.put("p", [first.url, second.url])
    home, [other] = await home_of(client, ask, policy, [first, second])
    await home.stop()
    await eventually(lambda: states(client)[f"{home.url}/v1"] == "ejected")
    reply = await client.respond(ask(policy))
    assert (reply.facts.attempts, reply.facts.endpoint) == (1, f"{other.url}/v1")
    home.release.clear()
    await home.start()
    await eventually(lambda: states(client)[f"{home.url}/v1"] == "healthy")


async def test_the_only_endpoint_is_waited_for_when_it_is_dead(server, clients, policies, ask, eventually):
    client = await clients(health_check_s=SOON_S, max_retries=0)
    policy = policies.put("p", [server.url])
    await client.respond(ask(policy))
    await server.stop()
    await eventually(lambda: states(client)[f"{server.url}/v1"] == "ejected")
    call = asyncio.create_task(client.respond(ask(policy)))
    await asyncio.sleep(0)
    await server.start()
    assert (await call).facts.attempts == 1


async def test_calls_leave_an_endpoint_that_accepts_and_answers_nothing(servers, clients, policies, ask, eventually):
    client = await clients(health_check_s=SOON_S)
    three = [await servers() for _ in range(3)]
    policy = policies.put("p", [server.url for server in three])
    home, others = await home_of(client, ask, policy, three)
    home.health = home.default = HANG
    calls = [asyncio.create_task(client.respond(ask(policy))) for _ in range(3)]
    replies = await asyncio.wait_for(asyncio.gather(*calls), 15)
    assert {reply.facts.endpoint for reply in replies} <= {f"{server.url}/v1" for server in others}
    assert {reply.facts.attempts for reply in replies} == {2}
    assert states(client)[f"{home.url}/v1"] == "ejected"
    home.health, home.default = 200, None
    home.release.set()
    await eventually(lambda: states(client)[f"{home.url}/v1"] == "healthy")


async def test_calls_leave_an_endpoint_that_is_well_by_its_own_account_and_answers_no_call(
    servers, clients, policies, ask, eventually
):
    client = await clients(health_check_s=SOON_S)
    first, second = await servers(), await servers()
    policy = policies.put("p", [first.url, second.url])
    home, [other] = await home_of(client, ask, policy, [first, second])
    home.default = HANG
    replies = await asyncio.wait_for(asyncio.gather(*(client.respond(ask(policy)) for _ in range(4))), 15)
    assert {(reply.facts.endpoint, reply.facts.attempts) for reply in replies} == {(f"{other.url}/v1", 2)}
    seen = len(home.checks)
    await asyncio.sleep(2 * SOON_S)
    assert states(client)[f"{home.url}/v1"] == "ejected"  # although /health would pass
    assert len(home.checks) == seen  # so it is not what is looked at
    home.default = None
    home.release.set()
    await eventually(lambda: states(client)[f"{home.url}/v1"] == "healthy")


async def test_calls_stay_where_all_endpoints_are_as_slow(servers, clients, policies, ask, eventually):
    client = await clients(health_check_s=0.2)
    first, second = await servers(), await servers()
    policy = policies.put("p", [first.url, second.url])
    await client.respond(ask(policy))
    first.default = second.default = HANG
    calls = [asyncio.create_task(client.respond(ask(policy, sticky_key=f"g{n}"))) for n in range(8)]
    await eventually(lambda: len(first.bodies) + len(second.bodies) >= 1 + 8 + 6)  # each is asked again and again
    assert set(states(client).values()) == {"healthy"}
    first.release.set()
    second.release.set()
    assert {reply.facts.attempts for reply in await asyncio.gather(*calls)} == {1}


async def test_a_long_answer_stays_where_another_question_is_answered(servers, clients, policies, ask, eventually):
    client = await clients(health_check_s=SOON_S)
    first, second = await servers(), await servers()
    policy = policies.put("p", [first.url, second.url])
    home, _ = await home_of(client, ask, policy, [first, second])
    home.script = [HANG]
    call = asyncio.create_task(client.respond(ask(policy)))
    await eventually(lambda: len(home.bodies) >= 1 + 1 + 2)  # it has been asked twice
    home.release.set()
    assert (await call).facts.attempts == 1


async def test_an_endpoint_that_says_it_is_ill_is_left_where_there_is_another(
    servers, clients, policies, ask, eventually
):
    client = await clients(health_check_s=SOON_S)
    first, second = await servers(), await servers()
    policy = policies.put("p", [first.url, second.url])
    home, [other] = await home_of(client, ask, policy, [first, second])
    home.health = 503
    await eventually(lambda: states(client)[f"{home.url}/v1"] == "ejected")
    assert (await client.respond(ask(policy))).facts.endpoint == f"{other.url}/v1"
    other.health = 503
    policies.put("p", [first.url, second.url])
    await eventually(lambda: len(other.checks) > 3)
    assert states(client)[f"{other.url}/v1"] == "healthy"  # better than none
    home.health = 200
    await eventually(lambda: states(client)[f"{home.url}/v1"] == "healthy")


@pytest.mark.parametrize("begun", [False, True], ids=["before its first piece", "after it"])
async def test_a_stream_leaves_a_hanging_endpoint_only_before_it_has_begun(client, policies, eventually, begun):
    pieces: list[Any] = []

    async def keep(chunks: list[dict[str, Any]]) -> None:
        pieces.append(chunks)

    slow = ScriptedModelOptions(latency_s=0.0 if begun else 0.5, token_latency_s=0.1)
    async with ScriptedModelServer(slow) as first, ScriptedModelServer(slow) as second:
        call = ChatCall(
            policy=policies.put("p", [first.url, second.url]),
            body={"messages": [{"role": "user", "content": "What is 4 + 3 ="}], "stream": True},
            sticky_key="g",
            deadline=asyncio.get_running_loop().time() + 30,
            request_id="r-1-0",
            on_chunks=keep,
        )
        asking = asyncio.create_task(client.complete(call))
        await eventually(lambda: first.stats["in_flight"] + second.stats["in_flight"] == 1 and bool(pieces) == begun)
        for endpoint in client._pools["p"][1].endpoints:
            endpoint.move_calls()
        assert (await asking).facts.attempts == (1 if begun else 2)


async def test_a_call_without_another_try_stays_where_it_is(server, clients, policies, ask):
    client = await clients(max_retries=0)
    server.script = [HANG]
    call = asyncio.create_task(client.respond(ask(policies.put("p", [server.url]))))
    await server.hanging.wait()
    [endpoint] = client._pools["p"][1].endpoints
    assert endpoint.move_calls() == 1
    server.release.set()
    assert (await call).facts.attempts == 1
    assert endpoint.moves == set()


@pytest.mark.parametrize("status", [404, 405])
async def test_a_server_without_a_health_path_is_asked_for_its_models(
    server, clients, policies, ask, eventually, status
):
    client = await clients(health_check_s=0.2)
    server.health = status
    await client.respond(ask(policies.put("p", [server.url], api_key="sk-1")))
    await eventually(lambda: [check.path for check in server.checks[:2]] == ["/health", "/v1/models"])
    assert server.checks[1].headers["Authorization"] == "Bearer sk-1"
    assert states(client)[f"{server.url}/v1"] == "healthy"


async def test_what_calls_have_ejected_for_long_is_tried_soon_after_it_is_well(
    server, clients, policies, ask, eventually
):
    client = await clients(health_check_s=0.2)
    policy = policies.put("p", [server.url])
    await client.respond(ask(policy))
    [endpoint] = client._pools["p"][1].endpoints
    server.default = 503
    endpoint.back_off_s, endpoint.ejected_until = 30.0, asyncio.get_running_loop().time() + 3600
    await eventually(lambda: len(server.bodies) >= 3)
    assert states(client)[f"{server.url}/v1"] == "ejected"  # it has been asked, and is not well
    server.default = None
    assert (await client.respond(ask(policy, within_s=30))).facts.attempts == 1


async def test_only_policies_used_lately_are_looked_at(servers, clients, policies, ask, eventually):
    client = await clients(health_check_s=0.1)
    used, left = await servers(), await servers()
    await client.respond(ask(policies.put("left", [left.url])))
    client._pools["left"][1].last_used -= 3600
    await client.respond(ask(policies.put("used", [used.url])))
    await eventually(lambda: len(used.checks) > 2)
    assert left.checks == []


async def test_nothing_is_asked_of_a_paused_policy(server, clients, policies, ask, eventually):
    client = await clients(health_check_s=0.1)
    other = policies.put("other", [server.url.replace("127.0.0.1", "localhost")])
    await client.respond(ask(policies.put("p", [server.url])))
    policies.change("p", paused="hold")
    await client.respond(ask(other))
    server.checks.clear()
    await eventually(lambda: len(server.checks) > 3)
    assert {check.host.partition(":")[0] for check in server.checks} == {"localhost"}


async def test_no_checks_are_made_where_they_are_switched_off(server, clients, policies, ask):
    client = await clients(health_check_s=0)
    await client.respond(ask(policies.put("p", [server.url])))
    await asyncio.sleep(0.5)
    assert server.checks == []


async def test_a_client_that_is_closed_leaves_no_check_behind(server, policies, ask, clients, eventually):
    client = await clients(health_check_s=0.1)
    server.health = HANG
    await client.respond(ask(policies.put("p", [server.url])))
    await eventually(lambda: bool(server.checks))
    await client.__aexit__(None, None, None)
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("health")]
    with pytest.raises((ModelUnreachable, RuntimeError)):
        await client.respond(ask(policies["p"], within_s=0.5))
