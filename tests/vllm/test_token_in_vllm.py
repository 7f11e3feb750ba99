"""Model calls made of token ids (`api: tokens`) at a real vLLM: one segment, whatever text reads as."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gym.agents.base import Episode
from gym.model_client.client import ChatReply, ModelReply, ModelRequest, PolicyClient
from gym.model_client.forward import ChatCall
from gym.model_client.routing.served_model import inline_model
from gym.policy import PolicySpec
from gym.testing.episodes import play
from gym.trajectory import Segments, TurnTokens
from gym.wire.responses.request import to_chat_request

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600), pytest.mark.anyio]

TOLERANCE = 0.02  # of a log-probability: the server computes in bfloat16, token by token or all at once
JSON_SHAPE = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def policy_of(vllm: Any, *, api: str = "tokens", reasoning: str | None = None) -> PolicySpec:
    fields = {"api": "tokens", "tool_parser": "hermes", "reasoning_parser": reasoning} if api == "tokens" else {}
    return PolicySpec(base_urls=vllm.policy.base_urls, model=vllm.policy.model, **fields)


async def weather(vllm: Any, client: PolicyClient, **params: Any) -> Episode:
    """The weather task solved by the tool loop, with its reward checked."""
    question = [{"role": "user", "content": "Is it warm in Lima right now?"}]
    asked: dict[str, Any] = {"input": question, "temperature": 1.0, **params}
    row = {"environment": "weather", "responses_create_params": asked}
    played = await play(row, model=client, policy=lambda: inline_model(policy_of(vllm)), within_s=100)
    assert played.reward == 1.0
    return played.episode


async def ask(vllm: Any, client: PolicyClient, params: dict[str, Any], **fields: Any) -> ModelReply:
    spec = policy_of(vllm, api=fields.pop("api", "tokens"), reasoning=fields.pop("reasoning", None))
    return await client.respond(
        ModelRequest(
            policy=inline_model(spec),
            params=params,
            sticky_key="g",
            deadline=asyncio.get_running_loop().time() + 100,
            rollout_id="r",
            attempt=1,
            **{"turn": 0, **fields},
        )
    )


async def talk(
    vllm: Any, client: PolicyClient, api: str, *, reasoning: str | None = None, **params: Any
) -> tuple[Segments, dict[str, Any], ModelReply]:
    """Four turns without tools: their segments, the last request as chat, and its answer."""
    items: list[dict[str, Any]] = []
    segments, tokens, reply, asked = Segments(), None, None, {}
    for turn in range(4):
        items.append({"role": "user", "content": f"Go on, part {turn}."})
        asked = {"input": list(items), "temperature": 1.0, "seed": turn, "max_output_tokens": 400, **params}
        reply = await ask(vllm, client, asked, turn=turn, prefix=tokens, api=api, reasoning=reasoning)
        tokens = reply.tokens
        assert tokens is not None
        segments.add_turn(tokens, 1)
        items += reply.items
    assert reply is not None
    return segments, to_chat_request(asked), reply


async def test_a_tool_conversation_is_one_segment_that_reads_as_the_server_renders_it(
    vllm: Any, client: PolicyClient
) -> None:
    episode = await weather(vllm, client, seed=1)
    trajectory = episode.trajectory
    assert [(call.name, call.failed) for call in trajectory.tool_calls] == [("get_weather", False)]
    [segment] = trajectory.segments.segments
    assert sum(segment.loss_mask) == trajectory.usage.output_tokens
    chat = to_chat_request(
        {
            **episode.task.params,
            "input": episode.input_items + trajectory.items,
            "tools": episode.environment.tools,
        }
    )
    rendered = vllm.text_of(vllm.prompt_ids(chat))
    assert rendered.startswith(vllm.text_of(list(segment.token_ids)))


async def test_talk_that_is_cut_as_chat_is_one_segment_of_what_was_generated(vllm: Any, client: PolicyClient) -> None:
    as_chat, _, _ = await talk(vllm, client, "chat")
    segments, chat, reply = await talk(vllm, client, "tokens")
    assert len(as_chat.segments) > 1
    assert len(segments.segments) == 1
    assert reply.tokens is not None
    assert reply.facts.finish == "stop"
    assert vllm.text_of(list(reply.tokens.prompt_ids)) == vllm.text_of(vllm.prompt_ids(chat))
    again = vllm.logprobs_of(list(reply.tokens.prompt_ids), list(reply.tokens.token_ids))
    assert list(reply.tokens.logprobs) == pytest.approx(again, abs=TOLERANCE)


async def test_turns_that_a_limit_cut_are_closed_as_the_template_closes_them(vllm: Any, client: PolicyClient) -> None:
    segments, chat, reply = await talk(vllm, client, "tokens", max_output_tokens=3)
    assert reply.facts.finish == "max_tokens"
    assert len(segments.segments) == 1
    assert reply.tokens is not None
    assert vllm.text_of(list(reply.tokens.prompt_ids)) == vllm.text_of(vllm.prompt_ids(chat))


async def test_reasoning_that_the_template_drops_stays_in_the_segment(vllm: Any, client: PolicyClient) -> None:
    # for this parser all of a text without </think> is reasoning, which the template leaves out
    segments, chat, reply = await talk(vllm, client, "tokens", reasoning="deepseek_r1")
    assert reply.tokens is not None
    assert [item["type"] for item in reply.items] == ["reasoning"]
    [segment] = segments.segments
    parts = vllm.text_of(list(reply.tokens.prompt_ids)).split("<|talk|>")
    rendered = vllm.text_of(vllm.prompt_ids(chat)).split("<|talk|>")
    assert [part.partition("<|end|>")[2] for part in parts] == [part.partition("<|end|>")[2] for part in rendered]
    assert all(part.startswith("<|end|>") for part in rendered[1:-1]), "the template keeps it"
    assert not any(part.startswith("<|end|>") for part in parts[1:])
    assert sum(segment.loss_mask) > 4


async def test_a_stream_of_tokens_is_what_is_recorded(vllm: Any, client: PolicyClient) -> None:
    pieces: list[list[dict[str, Any]]] = []

    async def keep(chunks: list[dict[str, Any]]) -> None:
        pieces.append(chunks)

    body = {"messages": [{"role": "user", "content": "Is it warm?"}], "max_tokens": 40, "seed": 1, "ignore_eos": True}
    reply = await client.complete(
        ChatCall(
            policy=inline_model(policy_of(vllm)),
            body={**body, "stream": True},
            sticky_key="g",
            deadline=asyncio.get_running_loop().time() + 100,
            request_id="r-1-0",
            on_chunks=keep,
        )
    )
    assert isinstance(reply, ChatReply)
    assert len(pieces) > 10
    [choice] = reply.completion["choices"]
    chunks = [chunk for piece in pieces for chunk in piece if chunk["choices"]]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == choice["message"]["content"]
    assert pieces[-1][-1]["usage"]["completion_tokens"] == 40
    assert reply.tokens is not None
    assert (len(reply.tokens.token_ids), reply.tokens.ended, choice["finish_reason"]) == (40, False, "length")
    again = vllm.logprobs_of(list(reply.tokens.prompt_ids), list(reply.tokens.token_ids))
    assert list(reply.tokens.logprobs) == pytest.approx(again, abs=TOLERANCE)


async def test_a_stock_server_is_found_to_ignore_the_required_prefix(vllm: Any, client: PolicyClient) -> None:
    for _ in range(2):
        segments, _, _ = await talk(vllm, client, "chat")
        assert len(segments.segments) > 1
    [policy] = client.load().values()
    assert policy["endpoints"][0]["required_prefix"] == "ignored"


async def test_the_shape_that_a_request_demands_is_kept(vllm: Any, client: PolicyClient) -> None:
    fmt = {"type": "json_schema", "name": "n", "schema": JSON_SHAPE}
    reply = await ask(vllm, client, {"input": "A number.", "text": {"format": fmt}, "max_output_tokens": 60, "seed": 1})
    [message] = reply.items
    text = message["content"][0]["text"]
    assert text.lstrip().startswith("{"), text


async def test_a_prompt_that_does_not_fit_is_an_overflow(vllm: Any, client: PolicyClient) -> None:
    reply = await ask(vllm, client, {"input": "Is it warm? " * 1000})
    assert reply.facts.finish == "context_overflow"


async def test_tokens_that_do_not_fit_are_an_overflow_though_what_is_rendered_fits(
    vllm: Any, client: PolicyClient
) -> None:
    first = await ask(vllm, client, {"input": "hi", "seed": 1})
    assert first.tokens is not None
    long = TurnTokens(
        [*first.tokens.prompt_ids, *[20] * 2100], first.tokens.token_ids, first.tokens.logprobs, ended=True
    )
    items = [{"role": "user", "content": "hi"}, *first.items, {"role": "user", "content": "go on"}]
    reply = await ask(vllm, client, {"input": items}, turn=1, prefix=long)
    assert reply.facts.finish == "context_overflow"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "get_weather"}])
async def test_demanded_calls_are_those_that_chat_gives(vllm: Any, client: PolicyClient, choice: Any) -> None:
    params = {
        "input": "Is it warm in Lima right now?",
        "temperature": 0.0,
        "max_output_tokens": 60,
        "tool_choice": choice,
        "tools": [
            {
                "type": "function",
                "name": "get_weather",
                "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
            }
        ],
    }
    chat, tokens = [await ask(vllm, client, params, api=api) for api in ("chat", "tokens")]
    assert [(item["name"], item["arguments"]) for item in tokens.items] == [
        (item["name"], item["arguments"]) for item in chat.items
    ]
    assert (tokens.facts.finish, tokens.facts.usage.output_tokens) == (
        chat.facts.finish,
        chat.facts.usage.output_tokens,
    )
