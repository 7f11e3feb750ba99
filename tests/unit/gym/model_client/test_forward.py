"""Calls that are sent, retried and given up, against a real server on loopback."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest
from aiohttp import web

from gym.errors import ModelRejected, ModelUnreachable

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
async def test_a_call_answered_by_a_passing_fault_is_sent_again(server, client, policies, ask, status):
    server.script = [status]
    reply = await client.respond(ask(policies.put("p", [server.url])))
    assert reply.facts.attempts == 2
    assert reply.items[0]["content"][0]["text"] == "hello"


async def test_a_call_whose_connection_breaks_is_sent_again(server, client, policies, ask, shapes):
    server.script = [shapes.DISCONNECT, shapes.DISCONNECT]
    reply = await client.respond(ask(policies.put("p", [server.url])))
    assert reply.facts.attempts == 3


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"choices": []}', b'{"object": "error", "message": "no"}'])
async def test_an_answer_that_is_no_completion_is_asked_for_again(server, client, policies, ask, body):
    server.script = [body]
    assert (await client.respond(ask(policies.put("p", [server.url])))).facts.attempts == 2


async def test_an_answer_that_the_server_aborted_is_asked_for_again(server, client, policies, ask, shapes):
    server.script = [shapes.completion(choice={"finish_reason": "abort"})]
    assert (await client.respond(ask(policies.put("p", [server.url])))).facts.attempts == 2


async def test_a_call_is_sent_no_more_often_than_allowed(server, clients, policies, ask):
    client = await clients(max_retries=2)
    server.script = [429] * 10
    with pytest.raises(
        ModelUnreachable, match=r"given up after 3 attempts.*max_retries is 2.*answered 429.*3 times"
    ) as caught:
        await client.respond(ask(policies.put("p", [server.url])))
    assert len(server.requests) == 3
    assert not caught.value.away


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 422, 307])
async def test_a_refusal_is_final(server, client, policies, ask, shapes, status):
    server.script = [shapes.error(status, "no such thing")]
    with pytest.raises(ModelRejected) as caught:
        await client.respond(ask(policies.put("p", [server.url])))
    assert len(server.requests) == 1
    for part in ("'p'", server.url, str(status), "no such thing"):
        assert part in caught.value.message


async def test_a_redirect_is_not_followed(servers, client, policies, ask):
    first, second = await servers(), await servers()
    first.script = [web.Response(status=307, headers={"Location": f"{second.url}/v1/chat/completions"})]
    with pytest.raises(ModelRejected, match="redirects are not followed"):
        await client.respond(ask(policies.put("p", [first.url])))
    assert second.requests == []


async def test_retry_after_is_waited_for_where_there_is_no_other_endpoint(server, client, policies, ask, shapes):
    def busy(_: Any) -> web.Response:
        answer = shapes.error(429)
        answer.headers["Retry-After"] = "0.3"
        return answer

    server.script = [busy]
    reply = await client.respond(ask(policies.put("p", [server.url])))
    assert reply.facts.duration_s >= 0.3


async def test_a_retry_after_beyond_the_deadline_ends_the_call_at_once(server, client, policies, ask, shapes):
    def busy(_: Any) -> web.Response:
        answer = shapes.error(503)
        answer.headers["Retry-After"] = "600"
        return answer

    server.script = [busy]
    began = asyncio.get_running_loop().time()
    with pytest.raises(ModelUnreachable, match="would come after its deadline"):
        await client.respond(ask(policies.put("p", [server.url]), within_s=10))
    assert asyncio.get_running_loop().time() - began < 5


async def test_another_endpoint_is_tried_without_waiting_for_the_first(servers, client, policies, ask, shapes):
    first, second = await servers(), await servers()

    def busy(_: Any) -> web.Response:
        answer = shapes.error(503)
        answer.headers["Retry-After"] = "600"
        return answer

    first.script = [busy] * 9
    for turn in range(6):
        await client.respond(ask(policies.get("p") or policies.put("p", [first.url, second.url]), sticky_key=f"{turn}"))
    assert len(second.requests) == 6


async def test_a_server_that_never_answers_is_cut_at_the_deadline(server, client, policies, ask, shapes):
    server.script = [shapes.HANG]
    began = asyncio.get_running_loop().time()
    with pytest.raises(ModelUnreachable, match=r"its deadline came. Tried: .* gave no answer within") as caught:
        await client.respond(ask(policies.put("p", [server.url]), within_s=0.2))
    assert asyncio.get_running_loop().time() - began < 2
    assert not caught.value.away  # it may only have been slow
    await asyncio.wait_for(server.client_left.wait(), 5)


async def test_a_call_that_takes_too_long_is_tried_on_another_endpoint(servers, clients, policies, ask, shapes):
    client = await clients(call_timeout_s=0.3)
    first, second = await servers(), await servers()
    first.script = second.script = [shapes.HANG]  # whichever is asked first
    reply = await client.respond(ask(policies.put("p", [first.url, second.url])))
    assert reply.facts.attempts == 2
    assert {len(first.requests), len(second.requests)} == {1}


async def test_a_call_that_takes_too_long_is_not_sent_to_the_same_endpoint_again(
    server, clients, policies, ask, shapes
):
    client = await clients(call_timeout_s=0.2)
    server.script = [shapes.HANG]
    with pytest.raises(ModelUnreachable, match="call_timeout_s"):
        await client.respond(ask(policies.put("p", [server.url])))
    assert len(server.requests) == 1


async def test_cancelling_a_call_closes_its_connection(server, client, policies, ask, shapes):
    server.script = [shapes.HANG]
    call = asyncio.create_task(client.respond(ask(policies.put("p", [server.url]))))
    await server.hanging.wait()
    assert client.load()["p"]["in_flight"] == 1
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await asyncio.wait_for(server.client_left.wait(), 5)
    load = client.load()["p"]
    assert (load["in_flight"], load["endpoints"][0]["in_flight"], load["endpoints"][0]["failed"]) == (0, 0, 0)


async def test_a_dead_endpoint_is_ejected_and_the_others_take_its_calls(server, client, policies, ask, dead_url):
    policy = policies.put("p", [dead_url, server.url])
    replies = await asyncio.gather(*(client.respond(ask(policy, sticky_key=f"g{n}")) for n in range(24)))
    assert all(reply.facts.endpoint == f"{server.url}/v1" for reply in replies)
    states = {endpoint["url"]: endpoint["state"] for endpoint in client.load()["p"]["endpoints"]}
    assert states == {f"{dead_url}/v1": "ejected", f"{server.url}/v1": "healthy"}


async def test_a_call_waits_for_its_only_endpoint_to_come_back(server, clients, policies, ask):
    client = await clients(max_retries=4)
    server.script = [503] * 3
    reply = await client.respond(ask(policies.put("p", [server.url])))
    assert reply.facts.attempts == 4
    assert reply.facts.duration_s > 0.9  # the back-off of an ejected endpoint
    assert client.load()["p"]["endpoints"][0]["state"] == "healthy"


async def test_where_nobody_listens_the_call_ends_by_its_deadline(client, policies, ask, dead_url):
    with pytest.raises(ModelUnreachable) as caught:
        await client.respond(ask(policies.put("p", [dead_url]), within_s=0.5))
    for part in ("'p'", dead_url, "Cannot connect", "3 times"):
        assert part in caught.value.message
    assert caught.value.retryable


async def test_one_answer_of_a_failing_server_says_that_it_is_not_away(server, clients, policies, ask, shapes):
    client = await clients(max_retries=1)
    server.script = [500, shapes.DISCONNECT]
    with pytest.raises(ModelUnreachable) as caught:
        await client.respond(ask(policies.put("p", [server.url])))
    assert not caught.value.away


async def test_a_call_that_waits_for_an_endpoint_is_no_stall_and_gives_up_in_time(clients, policies, ask, dead_url):
    client = await clients(unhealthy_wait_s=0.3)
    held = []
    began = asyncio.get_running_loop().time()
    with pytest.raises(ModelUnreachable, match="no endpoint was healthy") as caught:
        await client.respond(ask(policies.put("p", [dead_url]), within_s=60, on_held=lambda: held.append(1)))
    assert asyncio.get_running_loop().time() - began < 30
    assert held
    assert caught.value.away


async def test_no_error_text_shows_the_api_key(servers, clients, policies, ask, shapes):
    client = await clients(max_retries=0)
    server = await servers()
    key = "sk-very-secret"
    with_user = server.url.replace("http://", "http://ann:pass-word@")
    for status, kind in ((401, ModelRejected), (500, ModelUnreachable)):
        server.script = [shapes.error(status, f"Incorrect API key provided: {key}")]
        with pytest.raises(kind) as caught:
            await client.respond(ask(policies.put("p", [with_user], api_key=key)))
        assert key not in caught.value.message
        assert "pass-word" not in caught.value.message
    assert key not in str(client.load())
    assert "pass-word" not in str(client.load())
    assert server.requests[0].headers["Authorization"] == f"Bearer {key}"


async def test_a_users_name_in_the_url_is_sent_as_basic_authorization(server, client, policies, ask):
    await client.respond(ask(policies.put("p", [server.url.replace("http://", "http://ann:pw@")])))
    assert server.requests[0].headers["Authorization"] == "Basic YW5uOnB3"


async def test_each_attempt_has_an_id_of_its_own(server, client, policies, ask):
    server.script = [429]
    await client.respond(ask(policies.put("p", [server.url]), rollout_id="b:7", attempt=2, turn=3))
    assert [request.headers["x-request-id"] for request in server.requests] == ["b:7-2-3", "b:7-2-3-r1"]


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
async def test_a_base_url_may_or_may_not_end_in_v1(server, client, policies, ask, suffix):
    reply = await client.respond(ask(policies.put("p", [server.url + suffix])))
    assert reply.facts.endpoint == f"{server.url}/v1"


async def test_a_long_conversation_is_sent_whole(server, client, policies, ask):
    text = "x" * 3_000_000
    await client.respond(ask(policies.put("p", [server.url]), params={"input": text}))
    assert server.bodies[0]["messages"][0]["content"] == text


async def test_a_list_of_urls_is_replaced_while_a_call_is_in_flight(servers, client, policies, ask, shapes):
    first, second = await servers(), await servers()
    first.script = [shapes.HANG]
    policy = policies.put("p", [first.url])
    call = asyncio.create_task(client.respond(ask(policy)))
    await first.hanging.wait()
    policies.put("p", [second.url])
    reply = await client.respond(ask(policy))  # the caller's record is old, the call is not
    assert reply.facts.endpoint == f"{second.url}/v1"
    assert [endpoint["url"] for endpoint in client.load()["p"]["endpoints"]] == [f"{second.url}/v1"]
    first.release.set()
    assert (await call).facts.endpoint == f"{first.url}/v1"
    assert client.load()["p"]["in_flight"] == 0


async def test_a_retry_goes_to_the_urls_that_are_listed_by_then(servers, client, policies, ask):
    first, second = await servers(), await servers()

    def moved(_: Any) -> int:
        policies.put("p", [second.url])
        return 503

    first.script = [moved]
    reply = await client.respond(ask(policies.put("p", [first.url])))
    assert (reply.facts.endpoint, reply.facts.attempts) == (f"{second.url}/v1", 2)


async def test_a_context_overflow_is_an_outcome_and_not_an_error(server, client, policies, ask, shapes):
    message = "This model's maximum context length is 64 tokens. However, your request has 99 input tokens."
    server.script = [shapes.error(400, message, type="BadRequestError")]
    reply = await client.respond(ask(policies.put("p", [server.url], version=4)))
    assert (reply.facts.finish, reply.items, reply.tokens, reply.facts.version_before) == (
        "context_overflow",
        [],
        None,
        4,
    )
    assert client.load()["p"]["endpoints"][0]["failed"] == 0


async def test_a_limit_that_leaves_room_for_no_prompt_is_a_refusal(server, client, policies, ask, shapes):
    message = "max_tokens=999 cannot be greater than max_model_len=64. Please request fewer output tokens."
    server.script = [shapes.error(400, message, param="max_tokens")]
    with pytest.raises(ModelRejected, match="max_tokens=999"):
        await client.respond(ask(policies.put("p", [server.url])))


async def test_many_calls_through_a_server_that_fails_one_in_three_all_get_an_answer(server, client, policies, ask):
    policy = policies.put("p", [server.url])
    server.script = [
        500 if n % 3 == 0 else orjson.loads(b'{"choices":[{"message":{"content":"x"}}]}') for n in range(90)
    ]
    replies = await asyncio.gather(*(client.respond(ask(policy, rollout_id=f"b:{n}")) for n in range(50)))
    assert len(replies) == 50


@pytest.mark.parametrize("kind", ["policy", "judge"])
async def test_errors_name_the_model_by_its_kind(server, client, policies, ask, kind):
    model = policies.put("m", [server.url], kind=kind)
    server.script = [403]
    with pytest.raises(ModelRejected) as refused:
        await client.respond(ask(model))
    server.script = [503] * 100
    with pytest.raises(ModelUnreachable) as given_up:
        await client.respond(ask(model, within_s=1.0))
    del policies["m"]
    with pytest.raises(ModelUnreachable) as gone:
        await client.respond(ask(model))
    for error in (refused, given_up, gone):
        assert error.value.message.startswith(f"{kind} 'm'")
