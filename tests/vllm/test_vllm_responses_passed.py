"""Responses calls at a real vLLM's own /v1/responses: what comes back, and which tokens it names."""

from __future__ import annotations

import asyncio
from itertools import groupby
from typing import Any

import httpx
import orjson
import pytest

from gym.errors import ModelRejected
from gym.model_client.client import ModelReply, ModelRequest, PolicyClient
from gym.model_client.forward import ChatCall, ContextOverflow
from gym.model_client.routing.served_model import ServedModel, inline_model
from gym.policy import PolicySpec
from gym.testing.model_server.server import ScriptedModelServer
from gym.wire.passthrough.reply import RESPONSE
from gym.wire.passthrough.request import to_server_request
from gym.wire.sse import SseDecoder

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600), pytest.mark.anyio]

QUESTION = {"role": "user", "content": "Is it warm in Lima?"}
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the weather in a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
SAMPLED = {"temperature": 1.0, "seed": 3, "max_output_tokens": 200}
ALL = {"include": ["message.output_text.logprobs"], "enable_response_messages": True, "store": False}


def record(vllm: Any, **fields: Any) -> ServedModel:
    return inline_model(PolicySpec(base_urls=[vllm.url], model="weatherman", api="responses", **fields))


async def respond(vllm: Any, client: PolicyClient, turn: int = 0, **params: Any) -> ModelReply:
    return await client.respond(
        ModelRequest(
            policy=record(vllm),
            params=params,
            sticky_key="g",
            deadline=asyncio.get_running_loop().time() + 100,
            rollout_id="r",
            attempt=1,
            turn=turn,
        )
    )


async def test_the_tokens_of_a_text_are_those_that_the_server_generated(vllm: Any, client: PolicyClient) -> None:
    reply = await respond(vllm, client, input=[QUESTION], **SAMPLED)
    assert reply.tokens is not None
    assert len(reply.tokens.token_ids) == reply.facts.usage.output_tokens
    prompt, generated = list(reply.tokens.prompt_ids), list(reply.tokens.token_ids)
    assert prompt == vllm.prompt_ids({"messages": [QUESTION]})
    [item] = reply.items
    [part] = item["content"]
    assert vllm.text_of(generated).startswith(part["text"])
    assert part["logprobs"] == []  # nobody but the farm asked for them
    assert list(reply.tokens.logprobs) == pytest.approx(vllm.logprobs_of(prompt, generated), abs=0.1)


async def test_a_tool_loop_goes_on_from_the_servers_own_items(vllm: Any, client: PolicyClient) -> None:
    first = await respond(vllm, client, input=[QUESTION], tools=[WEATHER], **SAMPLED)
    calls = [item for item in first.items if item["type"] == "function_call"]
    assert {call["name"] for call in calls} == {"get_weather"}
    assert first.facts.usage.output_tokens > 0
    assert first.tokens is None  # calls alone come without log-probabilities
    outputs = [{"type": "function_call_output", "call_id": call["call_id"], "output": "24 degrees"} for call in calls]
    second = await respond(
        vllm, client, turn=1, input=[QUESTION, *first.items, *outputs], tools=[WEATHER], tool_choice="none", **SAMPLED
    )
    assert [item["type"] for item in second.items] == ["message"]
    assert second.tokens is not None
    assert "24 degrees" in vllm.text_of(list(second.tokens.prompt_ids))


@pytest.mark.parametrize("tools", [[], [WEATHER]], ids=["text", "calls"])
async def test_a_stream_is_handed_on_and_ends_in_the_whole_response(
    vllm: Any, client: PolicyClient, tools: list[Any]
) -> None:
    events: list[dict[str, Any]] = []
    batches = 0

    async def take(received: list[dict[str, Any]]) -> None:
        nonlocal batches
        batches += 1
        events.extend(received)

    reply = await client.complete(
        ChatCall(
            policy=record(vllm),
            body=to_server_request({"input": [QUESTION], "tools": tools, "stream": True, **SAMPLED}),
            sticky_key="g",
            deadline=asyncio.get_running_loop().time() + 100,
            request_id="r-1-0",
            on_chunks=take,
            dialect="responses",
        )
    )
    assert not isinstance(reply, ContextOverflow)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[-1]["response"] == reply.completion[RESPONSE]
    assert batches > 2
    field = "response.function_call_arguments.delta" if tools else "response.output_text.delta"
    pieces = "".join(event["delta"] for event in events if event["type"] == field)
    items = reply.completion[RESPONSE]["output"]
    assert pieces == "".join(item["arguments"] if tools else item["content"][0]["text"] for item in items)
    assert reply.tokens is None  # the log-probability of the end mark is not streamed


async def test_what_does_not_fit_is_an_overflow_and_a_limit_beyond_the_context_a_wrong_setting(
    vllm: Any, client: PolicyClient
) -> None:
    reply = await respond(vllm, client, input="word " * 3000, max_output_tokens=100)
    assert (reply.facts.finish, reply.items) == ("context_overflow", [])
    cut = await respond(vllm, client, input="hi", temperature=1.0, seed=3, max_output_tokens=4)
    assert (cut.facts.finish, cut.facts.usage.output_tokens) == ("max_tokens", 4)
    with pytest.raises(ModelRejected, match="max_model_len"):
        await respond(vllm, client, input="hi", max_output_tokens=5000)


def events_at(url: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    decoder, events = SseDecoder(), []
    with httpx.stream("POST", f"{url}/v1/responses", json={**body, "stream": True}, timeout=60) as answer:
        for received in answer.iter_bytes():
            events += [orjson.loads(event) for event in decoder.feed(received)]
    return events


@pytest.mark.parametrize("tools", [[], [WEATHER]], ids=["text", "calls"])
async def test_the_scripted_server_answers_in_the_shapes_of_the_real_one(vllm: Any, tools: list[Any]) -> None:
    choice = "required" if tools else "none"
    body = {"model": "weatherman", "input": [QUESTION], **SAMPLED, **ALL}
    body |= {"tools": tools, "tool_choice": choice} if tools else {}
    real, real_events = vllm.post("/v1/responses", body), await asyncio.to_thread(events_at, vllm.url, body)
    async with ScriptedModelServer() as server, httpx.AsyncClient() as http:
        scripted = (await http.post(f"{server.url}/v1/responses", json=body)).json()
        scripted_events = await asyncio.to_thread(events_at, server.url, body)
    assert scripted.keys() <= real.keys()
    assert scripted["output"][-1].keys() <= real["output"][-1].keys()
    assert scripted["output_messages"][0].keys() == real["output_messages"][0].keys()
    if not tools:
        [part], [real_part] = scripted["output"][0]["content"], real["output"][0]["content"]
        assert part.keys() == real_part.keys()
        assert part["logprobs"][0].keys() == real_part["logprobs"][0].keys()
        for response in (scripted, real):
            tokens = response["output_messages"][0]["tokens"]
            assert len(tokens) == len(response["output"][0]["content"][0]["logprobs"])
    kinds, real_kinds = ([kind for kind, _ in groupby(e["type"] for e in es)] for es in (scripted_events, real_events))
    assert kinds == real_kinds[: len(kinds) - 1] + real_kinds[-1:]  # the real one may make several calls
    by_kind = {event["type"]: event for event in real_events}
    for event in scripted_events:
        assert event.keys() == by_kind[event["type"]].keys(), event["type"]
