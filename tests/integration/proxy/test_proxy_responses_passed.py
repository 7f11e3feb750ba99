"""A policy with `api: responses`: Responses calls reach the server's own /v1/responses, through a real proxy."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import orjson
import pytest
from aiohttp import web

from gym.model_client.client import PolicyClient
from gym.model_client.settings import ModelSettings
from gym.state.policies import PolicyCache
from gym.testing.episodes import play
from gym.testing.scripted_policy.tokenizer import decode

pytestmark = pytest.mark.anyio

ROLLOUT = "batch:0:0"
QUESTION = "What is the weather like in Lima?"
SPOKEN = 'Go. [[reason One city.]] [[say I look.]] [[call get_weather {"city": "Lima"}]]'
TOOL = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the weather in a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
ASKED: dict[str, Any] = {"model": "any", "input": "What is 4 + 3 ="}


@pytest.fixture
async def passed(farm):
    """One model server, which serves the default policy in Responses."""
    server = await farm.model()
    await farm.serve(server.url, version=3, api="responses")
    return server


@pytest.fixture
async def proxy(farm, passed):
    return await farm.proxy()


def weather(arguments: str) -> str:
    report = {"city": json.loads(arguments)["city"], "weather_description": "The weather in Lima is cold."}
    return json.dumps(report, separators=(",", ":"))


async def loop(base: str, stream: bool, tools: list[Any], question: str = QUESTION) -> str:
    """A tool loop of the official client."""
    async with openai.AsyncOpenAI(base_url=f"{base}/v1", api_key="none", max_retries=0) as client:
        items: list[Any] = [{"role": "user", "content": question}]
        while True:
            asked: Any = {"model": "any", "input": items, "tools": tools, "max_output_tokens": 400}
            if stream:
                async with client.responses.stream(**asked) as events:
                    numbers = [event.sequence_number async for event in events]
                assert numbers == sorted(numbers)
                response: Any = await events.get_final_response()
            else:
                response = await client.responses.create(**asked)
            calls = [item for item in response.output if item.type == "function_call"]
            if not calls:
                return str(response.output_text)
            items += [item.model_dump(exclude_none=True, exclude={"parsed_arguments"}) for item in response.output]
            for item in items:
                for part in item.get("content", ()) if item.get("type") == "message" else ():
                    part.pop("parsed", None)
            items += [
                {"type": "function_call_output", "call_id": call.call_id, "output": weather(call.arguments)}
                for call in calls
            ]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("question", [QUESTION, SPOKEN])
async def test_the_official_client_runs_a_tool_loop_that_is_captured(farm, passed, proxy, stream, question):
    text = await loop(f"{proxy}/rollouts/{ROLLOUT}", stream, [TOOL], question)
    assert "cold" in text or (question == SPOKEN and text == "Done.")
    assert {record.path for record in passed.records} == {"/v1/responses"}
    trajectory = await farm.captures.trajectory(ROLLOUT)
    kinds = [item.get("type", item.get("role")) for item in trajectory.items]
    said = [] if question == QUESTION else ["reasoning", "message"]
    assert kinds == [*said, "function_call", "function_call_output", "message"]
    assert [call.turn for call in trajectory.calls] == [0, 1]
    assert all(call.facts.usage.output_tokens for call in trajectory.calls)
    assert {(call.facts.version_before, call.facts.version_after) for call in trajectory.calls} == {(3, 3)}
    # a turn of a call alone has no log-probabilities, nor has a whole stream
    assert [call.has_tokens for call in trajectory.calls] == [not stream and bool(said), not stream]
    assert not trajectory.tokens_complete or (not stream and said)


async def test_a_conversation_with_texts_is_one_segment_of_the_servers_tokens(farm, passed, proxy):
    await loop(f"{proxy}/rollouts/{ROLLOUT}", False, [TOOL], SPOKEN)
    trajectory = await farm.captures.trajectory(ROLLOUT)
    [segment] = trajectory.segments.segments
    sampled = [i for i, mask in zip(segment.token_ids, segment.loss_mask, strict=True) if mask]
    assert len(sampled) == trajectory.usage.output_tokens
    assert decode(sampled).startswith("<think>One city.</think>I look.<tool_call>")
    assert all(value < 0 for value, mask in zip(segment.logprobs, segment.loss_mask, strict=True) if mask)


async def test_the_library_runs_the_same_loop_and_records_the_same_tokens(farm, passed, proxy):
    cache = PolicyCache(farm.store, "library")
    await cache.refresh()
    params = {"input": [{"role": "user", "content": SPOKEN}], "max_output_tokens": 400}
    row = {"environment": "weather", "responses_create_params": params}
    async with PolicyClient(ModelSettings(), cache) as client:
        played = await play(
            row, model=client, policy=lambda: cache.get("policy"), rollout_id=ROLLOUT, group_id="batch:0"
        )
    library = played.episode.trajectory
    assert {record.path for record in passed.records} == {"/v1/responses"}
    kinds = ["reasoning", "message", "function_call", "function_call_output", "message"]
    assert [item["type"] for item in library.items] == kinds
    assert library.tokens_complete
    [segment] = library.segments.segments
    first = len(library.calls)
    await loop(f"{proxy}/rollouts/other", False, played.tools, SPOKEN)
    captured = await farm.captures.trajectory("other")
    assert len(captured.calls) == first == 2
    [other] = captured.segments.segments
    begun = bytes(segment.loss_mask).index(1)
    ended = segment.policy_versions[0][1]
    assert other.token_ids[:ended] == segment.token_ids[:ended]
    assert other.logprobs[begun:ended] == segment.logprobs[begun:ended]


async def test_what_only_the_farm_asked_for_is_not_shown(passed, proxy, http):
    response = (await http.post(f"{proxy}/v1/responses", json=ASKED)).json()
    assert "input_messages" not in response
    assert response["output"][0]["content"][0]["logprobs"] == []
    assert response["id"].startswith("resp_")
    assert response["max_output_tokens"] > 1000  # the server's own field
    events = [orjson.loads(line[6:]) for line in await streamed(http, proxy, ASKED) if line.startswith("data: {")]
    assert not any(event.get("logprobs") for event in events)
    assert "output_messages" not in events[-1]["response"]
    assert events[-1]["response"]["output"][0]["content"][0]["logprobs"] == []
    wanted = {**ASKED, "include": ["message.output_text.logprobs"], "enable_response_messages": True}
    shown = (await http.post(f"{proxy}/v1/responses", json=wanted)).json()
    assert shown["output"][0]["content"][0]["logprobs"]
    assert shown["output_messages"]


async def streamed(http: Any, base: str, body: dict[str, Any]) -> list[str]:
    async with http.stream("POST", f"{base}/v1/responses", json={**body, "stream": True}) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        return [line async for line in answer.aiter_lines()]


@pytest.mark.parametrize("first_streamed", [False, True])
async def test_a_repeat_gets_the_recorded_answer_whole_or_as_events(passed, proxy, http, first_streamed):
    base = f"{proxy}/rollouts/r"
    for stream in (first_streamed, not first_streamed):
        if not stream:
            whole = (await http.post(f"{base}/v1/responses", json=ASKED)).json()
        else:
            lines = await streamed(http, base, ASKED)
            last = orjson.loads([line for line in lines if line.startswith("data: ")][-1][6:])
    assert passed.stats["requests"] == 1
    assert last["response"] == whole


async def test_the_official_client_reads_a_replayed_stream(passed, proxy):
    await loop(f"{proxy}/rollouts/r", False, [TOOL], SPOKEN)
    sampled = passed.stats["requests"]
    async with openai.AsyncOpenAI(base_url=f"{proxy}/rollouts/r/v1", api_key="none", max_retries=0) as client:
        asked: Any = {"model": "any", "input": [{"role": "user", "content": SPOKEN}], "tools": [TOOL]}
        async with client.responses.stream(**asked, max_output_tokens=400) as events:
            kinds = [event.type async for event in events]
        response = await events.get_final_response()
    assert passed.stats["requests"] == sampled
    assert [item.type for item in response.output] == ["reasoning", "message", "function_call"]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"


async def test_other_dialects_go_to_the_servers_chat_completions(passed, proxy, http):
    chat = {"model": "any", "messages": [{"role": "user", "content": "What is 4 + 3 ="}]}
    assert (await http.post(f"{proxy}/v1/chat/completions", json=chat)).status_code == 200
    assert (await http.post(f"{proxy}/v1/messages", json={**chat, "max_tokens": 99})).status_code == 200
    assert [record.path for record in passed.records] == ["/v1/chat/completions"] * 2


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"store": True}, "store"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0.type"),
        ({"extra_body": {"store": True}}, "store"),
    ],
)
async def test_what_the_server_would_keep_or_run_itself_is_refused(passed, proxy, http, fields, named):
    answer = await http.post(f"{proxy}/v1/responses", json={**ASKED, **fields})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, named)
    assert passed.stats["requests"] == 0


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_failure_that_may_pass_is_tried_again(farm, passed, http, status):
    proxy = await farm.proxy()
    passed.behave(fail_next=1, fail_status=status, retry_after_s=0.0)
    assert (await http.post(f"{proxy}/v1/responses", json=ASKED)).status_code == 200
    assert [record.status for record in passed.records] == [status, 200]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_a_conversation_that_no_longer_fits_is_an_overflow(farm, http, stream):
    small = await farm.model(max_model_len=64)
    await farm.serve(small.url, api="responses")
    proxy = await farm.proxy()
    body = {"model": "any", "input": "word " * 200, "stream": stream}
    answer = await http.post(f"{proxy}/rollouts/r/v1/responses", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
    [call] = (await farm.captures.trajectory("r")).calls
    assert call.facts.finish == "context_overflow"


async def test_a_client_that_leaves_in_mid_stream_ends_the_call_to_the_server(passed, proxy, http, eventually):
    passed.behave(token_latency_s=0.5)
    body = {**ASKED, "stream": True}
    async with http.stream("POST", f"{proxy}/rollouts/r/v1/responses", json=body) as answer:
        await anext(answer.aiter_bytes())
        assert passed.stats["in_flight"] == 1
    await eventually(lambda: passed.stats["in_flight"] == 0)
    assert passed.records[-1].disconnected


async def test_a_stream_comes_token_by_token(passed, proxy, http):
    passed.behave(token_latency_s=0.05)
    times = []
    async with http.stream("POST", f"{proxy}/v1/responses", json={**ASKED, "stream": True}) as answer:
        async for _ in answer.aiter_bytes():
            times.append(asyncio.get_running_loop().time())  # noqa: PERF401  the time of each matters
    assert len(times) >= 4
    assert times[-1] - times[0] >= 0.1


CREATED = {"type": "response.created", "sequence_number": 0, "response": {"id": "resp_x", "object": "response"}}
FAILED = {"type": "response.failed", "sequence_number": 1, "response": {"error": {"message": "out of memory"}}}


@pytest.mark.parametrize(
    ("after", "told"), [([], "ended before the answer did"), ([FAILED], "out of memory")], ids=["cut", "failed"]
)
async def test_a_stream_that_breaks_ends_with_one_failure_and_is_no_recorded_answer(farm, http, after, told):
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for event in (CREATED, *after):
            await response.write(b"event: %b\ndata: %b\n\n" % (event["type"].encode(), orjson.dumps(event)))
            await asyncio.sleep(0.05)
        return response

    app = web.Application()
    app.router.add_post("/v1/responses", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        await farm.serve(f"http://127.0.0.1:{runner.addresses[0][1]}", api="responses")
        lines = await streamed(http, f"{await farm.proxy()}/rollouts/r", ASKED)
    finally:
        await runner.cleanup()
    events = [orjson.loads(line[6:]) for line in lines if line.startswith("data: ")]
    assert [event["type"] for event in events] == ["response.created", "response.failed"]
    assert [event["sequence_number"] for event in events] == [0, 1]
    assert told in events[-1]["response"]["error"]["message"]
    assert events[-1]["response"]["id"] == "resp_x"
    assert await farm.captures.records("r") == []


async def test_a_server_without_the_api_is_told_from_a_bad_request(farm, proxy, http):
    app = web.Application()
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        await farm.serve(f"http://127.0.0.1:{runner.addresses[0][1]}", api="responses")
        answer = await http.post(f"{await farm.proxy()}/v1/responses", json=ASKED)
    finally:
        await runner.cleanup()
    assert answer.status_code == 502
    assert "/v1/responses" in answer.json()["error"]["message"]
