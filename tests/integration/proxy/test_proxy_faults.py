"""Clients that leave or repeat, servers that die or hang, policies that pause, keys."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import openai
import orjson
import pytest
from aiohttp import web

from gym.state.redis.embedded import EmbeddedRedis

pytestmark = pytest.mark.anyio

REQUESTS: dict[str, dict[str, Any]] = {
    "/v1/responses": {"model": "any", "input": "What is 4 + 3 ="},
    "/v1/chat/completions": {"model": "any", "messages": [{"role": "user", "content": "What is 4 + 3 ="}]},
    "/v1/messages": {"model": "any", "max_tokens": 99, "messages": [{"role": "user", "content": "What is 4 + 3 ="}]},
}
ENDS = {"/v1/responses": b"response.completed", "/v1/chat/completions": b"[DONE]", "/v1/messages": b"message_stop"}


@pytest.mark.parametrize("rollout", ["", "/rollouts/r"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("path", REQUESTS)
async def test_a_client_that_leaves_ends_the_call_to_the_server(model, proxy, http, eventually, path, stream, rollout):
    model.behave(token_latency_s=0.5)
    body = {**REQUESTS[path], "stream": stream}
    if stream:
        async with http.stream("POST", f"{proxy}{rollout}{path}", json=body) as response:
            await anext(response.aiter_bytes())
            assert model.stats["in_flight"] == 1
    else:
        call = asyncio.create_task(http.post(f"{proxy}{rollout}{path}", json=body))
        await eventually(lambda: model.stats["in_flight"] == 1)
        call.cancel()
    await eventually(lambda: model.stats["in_flight"] == 0)
    assert model.stats["cancelled_by_client"] == 1
    assert model.records[-1].disconnected


async def test_a_repeat_after_the_client_left_is_sampled_and_has_the_first_turn(farm, model, proxy, http, eventually):
    model.behave(latency_s=30.0)
    call = asyncio.create_task(http.post(f"{proxy}/rollouts/r/v1/responses", json=REQUESTS["/v1/responses"]))
    await eventually(lambda: model.stats["in_flight"] == 1)
    call.cancel()
    await eventually(lambda: model.stats["in_flight"] == 0)
    model.behave(latency_s=0.0)
    answer = await http.post(f"{proxy}/rollouts/r/v1/responses", json=REQUESTS["/v1/responses"])
    assert answer.json()["id"] == "resp_r-1-0"
    assert len((await farm.captures.trajectory("r")).calls) == 1


async def test_a_stream_comes_token_by_token(model, proxy, http):
    model.behave(token_latency_s=0.05)
    times = []
    body = {**REQUESTS["/v1/chat/completions"], "stream": True}
    async with http.stream("POST", f"{proxy}/v1/chat/completions", json=body) as response:
        async for _ in response.aiter_bytes():
            times.append(asyncio.get_running_loop().time())  # noqa: PERF401  the time of each matters
    assert len(times) >= 4
    assert times[-1] - times[0] >= 0.15


@pytest.mark.parametrize("path", REQUESTS)
async def test_a_repeat_is_answered_from_the_record(model, proxy, http, path):
    url = f"{proxy}/rollouts/r{path}"
    first = await http.post(url, json=REQUESTS[path])
    assert first.status_code == 200
    assert (await http.post(url, json=REQUESTS[path])).content == first.content
    streamed = await http.post(url, json={**REQUESTS[path], "stream": True})
    assert ENDS[path] in streamed.content
    assert b"<answer>7</answer>" in streamed.content
    assert model.stats["requests"] == 1
    other = await http.post(url, json=REQUESTS[path], headers={"x-farm-attempt": "2"})
    assert other.status_code == 200
    assert model.stats["requests"] == 2
    late = await http.post(url, json=REQUESTS[path], headers={"x-farm-attempt": "1"})
    assert late.status_code == 409


async def test_a_stream_that_was_recorded_is_the_answer_to_a_repeat(model, proxy, http):
    url = f"{proxy}/rollouts/r/v1/responses"
    streamed = await http.post(url, json={**REQUESTS["/v1/responses"], "stream": True})
    assert b"resp_r-1-0" in streamed.content
    whole = (await http.post(url, json=REQUESTS["/v1/responses"])).json()
    assert whole["id"] == "resp_r-1-0"
    assert whole["output"][0]["content"][0]["text"] == "<answer>7</answer>"
    assert model.stats["requests"] == 1


async def test_equal_calls_at_once_are_sampled_once_over_all_proxies(farm, model, proxy, http):
    other = await farm.proxy()
    model.behave(latency_s=0.3)
    answers = await asyncio.gather(
        *(http.post(f"{base}/rollouts/r/v1/responses", json=REQUESTS["/v1/responses"]) for base in [proxy, other] * 4)
    )
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert model.stats["requests"] == 1
    assert len((await farm.captures.trajectory("r")).calls) == 1


async def test_a_repeat_waits_no_longer_than_its_deadline(model, proxy, http, eventually):
    model.behave(latency_s=30.0)
    url = f"{proxy}/rollouts/r/v1/responses"
    first = asyncio.create_task(http.post(url, json=REQUESTS["/v1/responses"]))
    await eventually(lambda: model.stats["in_flight"] == 1)
    repeat = await http.post(url, json=REQUESTS["/v1/responses"], headers={"x-farm-timeout-s": "0.3"})
    assert (repeat.status_code, repeat.json()["error"]["code"]) == (503, "call_underway")
    assert "retry-after" in repeat.headers
    first.cancel()


@asynccontextmanager
async def dying(chunks: int) -> AsyncIterator[tuple[str, list[Any]]]:
    """A model server that streams so many chunks and then breaks the connection."""
    seen: list[Any] = []

    async def chat(request: web.Request) -> web.StreamResponse:
        seen.append(await request.json())
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for _ in range(chunks):
            choice = {"index": 0, "delta": {"content": "half "}, "finish_reason": None}
            chunk = {"id": "c", "object": "chat.completion.chunk", "model": "m", "choices": [choice]}
            await response.write(b"data: %b\n\n" % orjson.dumps(chunk))
        await asyncio.sleep(0.05)
        assert request.transport is not None
        request.transport.abort()
        return response

    app = web.Application()

    async def health(request: web.Request) -> web.Response:
        return web.Response()

    app.router.add_post("/v1/chat/completions", chat)
    app.router.add_get("/health", health)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", seen
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("path", REQUESTS)
async def test_a_server_that_dies_in_mid_stream_ends_the_stream_with_an_error(farm, http, path):
    async with dying(2) as (url, seen):
        await farm.serve(url)
        proxy = await farm.proxy()
        answer = await http.post(f"{proxy}/rollouts/r{path}", json={**REQUESTS[path], "stream": True})
        assert answer.status_code == 200
        assert b"half " in answer.content
        last = {
            "/v1/responses": b"event: response.failed",
            "/v1/chat/completions": b'data: {"error":',
            "/v1/messages": b"event: error",
        }
        assert last[path] in answer.content
        assert len(seen) == 1
        assert await farm.captures.trajectory("r") is None


async def test_the_clients_raise_where_the_server_dies_in_mid_stream(farm):
    async with dying(2) as (url, _):
        await farm.serve(url)
        proxy = await farm.proxy()
        async with openai.AsyncOpenAI(base_url=f"{proxy}/v1", api_key="none", max_retries=0) as client:
            messages: Any = REQUESTS["/v1/chat/completions"]["messages"]
            chunks = await client.chat.completions.create(model="any", messages=messages, stream=True)
            with pytest.raises(openai.APIError, match="given up"):
                [chunk async for chunk in chunks]
        async with anthropic.AsyncAnthropic(base_url=proxy, api_key="none", max_retries=0) as other:
            asked: Any = REQUESTS["/v1/messages"]
            events = await other.messages.create(**asked, stream=True)
            with pytest.raises(anthropic.APIStatusError, match="given up"):
                [event async for event in events]


async def test_a_stream_is_tried_elsewhere_before_its_first_byte(farm, model, http):
    async with dying(0) as (url, seen):
        await farm.serve(url, model.url)
        proxy = await farm.proxy()
        for number in range(40):  # which server a call goes to first depends on its text and the ports
            body = {"model": "any", "stream": True, "input": f"What is {number} + 3 ="}
            answer = await http.post(f"{proxy}/v1/responses", json=body)
            assert b"response.completed" in answer.content
            if seen:
                break
        assert seen


async def test_calls_go_round_one_of_three_endpoints_that_hangs(farm, http):
    servers = [await farm.model(), await farm.model(), await farm.model(hang_rate=1.0)]
    await farm.serve(*(server.url for server in servers))
    proxy = await farm.proxy(model={"call_timeout_s": 1})
    asked = [{"model": "any", "input": f"What is {number} + 3 ="} for number in range(24)]
    headers = {"x-farm-timeout-s": "10"}
    answers = await asyncio.gather(*(http.post(f"{proxy}/v1/responses", json=body, headers=headers) for body in asked))
    assert [answer.status_code for answer in answers] == [200] * 24
    assert servers[2].stats["requests"] > 0
    hung = servers[2].stats["requests"]
    again = await http.post(f"{proxy}/v1/responses", json=asked[0], headers=headers)
    assert again.status_code == 200
    assert servers[2].stats["requests"] <= hung + 1


async def test_a_pause_holds_calls_and_a_resume_lets_them_go(farm, model, proxy, http):
    load = await farm.policies.pause("policy", "hold", timeout_s=5)
    assert load.obeyed
    calls = [
        asyncio.create_task(http.post(f"{proxy}/rollouts/{name}/v1/responses", json=REQUESTS["/v1/responses"]))
        for name in ("a", "b")
    ]
    async with asyncio.timeout(5):
        while (await farm.policies.load("policy", 0)).held < 2:  # noqa: ASYNC110  what the proxy reports
            await asyncio.sleep(0.02)
    assert model.stats["requests"] == 0
    await farm.policies.resume("policy", 9)
    assert [(await call).status_code for call in calls] == [200, 200]
    trajectory = await farm.captures.trajectory("a")
    assert trajectory.calls[0].facts.version_before == 9


async def test_a_call_to_a_paused_policy_ends_at_its_deadline(farm, model, proxy, http):
    await farm.policies.pause("policy", "hold", timeout_s=5)
    answer = await http.post(f"{proxy}/v1/messages", json=REQUESTS["/v1/messages"], headers={"x-farm-timeout-s": "0.3"})
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json()["error"]["type"] == "overloaded_error"


async def test_keys_are_asked_for_where_there_are_any(farm, model, http):
    key = "k" * 20
    proxy = await farm.proxy(api={"keys": [{"key": key, "scopes": ["submit", "read"]}]})
    body = REQUESTS["/v1/messages"]
    refused = await http.post(f"{proxy}/v1/messages", json=body)
    assert (refused.status_code, refused.json()["error"]["type"]) == (401, "authentication_error")
    assert (await http.post(f"{proxy}/v1/messages", json=body, headers={"x-api-key": key})).status_code == 200
    assert (await http.get(f"{proxy}/v1/models", headers={"authorization": f"Bearer {key}"})).status_code == 200
    assert (await http.get(f"{proxy}/healthz")).status_code == 200


async def test_the_policy_is_that_of_the_header_or_the_model_or_the_default(farm, model, http):
    other = await farm.model()
    await farm.serve(other.url, name="other")
    proxy = await farm.proxy()
    for body, headers in (({"model": "other"}, {}), ({"model": "policy"}, {"x-farm-policy": "other"})):
        await http.post(f"{proxy}/v1/responses", json={"input": "hi", **body}, headers=headers)
    assert (model.stats["requests"], other.stats["requests"]) == (0, 2)
    await http.post(f"{proxy}/v1/responses", json={"input": "hi", "model": "gpt"})
    assert model.stats["requests"] == 1


@pytest.mark.parametrize("body", [b"", b"[]", b"{"])
async def test_what_is_no_json_object_is_malformed(proxy, http, body):
    answer = await http.post(f"{proxy}/v1/responses", content=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "malformed_json")


async def test_without_redis_plain_calls_go_on_and_captured_ones_are_to_be_repeated(tmp_path, http, farm_of):
    redis = EmbeddedRedis(tmp_path)
    with redis:
        farm = farm_of(redis.url)
        model = await farm.model()
        await farm.serve(model.url)
        proxy = await farm.proxy(redis={"url": redis.url, "timeout_s": 1.0})
    plain = await http.post(f"{proxy}/v1/responses", json=REQUESTS["/v1/responses"])
    assert plain.status_code == 200
    captured = await http.post(f"{proxy}/rollouts/r/v1/responses", json=REQUESTS["/v1/responses"])
    assert (captured.status_code, captured.json()["error"]["code"]) == (503, "redis_unavailable")
    assert "retry-after" in captured.headers
