"""Each way in which a request can be too long for a real vLLM."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gym.errors import ModelRejected
from gym.model_client.client import ModelReply, ModelRequest, PolicyClient

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600), pytest.mark.anyio]

CONTEXT_TOKENS = 2048


async def respond(vllm: Any, client: PolicyClient, **params: Any) -> ModelReply:
    return await client.respond(
        ModelRequest(
            policy=vllm.record,
            params=params,
            sticky_key="g",
            deadline=asyncio.get_running_loop().time() + 100,
            rollout_id="r",
            attempt=1,
            turn=0,
        )
    )


def digits(count: int) -> str:
    """A text of so many tokens."""
    return ("1234567890" * (count // 10 + 1))[:count]


def text_for(vllm: Any, prompt_tokens: int) -> str:
    """A user's text whose whole prompt has so many tokens."""
    around = len(vllm.prompt_ids({"messages": [{"role": "user", "content": ""}]}))
    text = digits(prompt_tokens - around)
    assert len(vllm.prompt_ids({"messages": [{"role": "user", "content": text}]})) == prompt_tokens
    return text


@pytest.mark.parametrize("params", [{}, {"max_output_tokens": 1}, {"max_output_tokens": 500}], ids=["", "1", "500"])
async def test_a_prompt_that_fills_the_context_is_an_overflow(
    vllm: Any, client: PolicyClient, params: dict[str, Any]
) -> None:
    reply = await respond(vllm, client, input=text_for(vllm, CONTEXT_TOKENS), **params)
    assert reply.facts.finish == "context_overflow"
    assert (reply.items, reply.tokens, reply.facts.attempts) == ([], None, 1)


@pytest.mark.parametrize("length", [CONTEXT_TOKENS + 1, 20_000, 2_000_000])
@pytest.mark.parametrize("params", [{}, {"max_output_tokens": 16}], ids=["no limit", "a limit"])
async def test_a_prompt_longer_than_the_context_is_an_overflow(
    vllm: Any, client: PolicyClient, length: int, params: dict[str, Any]
) -> None:
    reply = await respond(vllm, client, input=digits(length), **params)
    assert reply.facts.finish == "context_overflow"


async def test_a_conversation_that_grew_too_long_is_an_overflow(vllm: Any, client: PolicyClient) -> None:
    call = {"type": "function_call", "call_id": "c", "name": "get_weather", "arguments": '{"city": "Oslo"}'}
    output = {"type": "function_call_output", "call_id": "c", "output": digits(3000)}
    reply = await respond(vllm, client, input=[{"role": "user", "content": "Oslo?"}, call, output])
    assert reply.facts.finish == "context_overflow"


async def test_a_prompt_with_just_enough_room_is_answered(vllm: Any, client: PolicyClient) -> None:
    reply = await respond(
        vllm, client, input=text_for(vllm, CONTEXT_TOKENS - 10), max_output_tokens=10, ignore_eos=True
    )
    assert (reply.facts.finish, reply.facts.usage.output_tokens) == ("max_tokens", 10)


@pytest.mark.parametrize(
    "params",
    [{}, {"max_output_tokens": 6}, {"max_output_tokens": CONTEXT_TOKENS}, {"extra_body": {"max_completion_tokens": 6}}],
    ids=["no limit", "a limit", "the largest limit", "max_completion_tokens"],
)
async def test_an_answer_that_reaches_the_end_of_the_context_is_cut_there(
    vllm: Any, client: PolicyClient, params: dict[str, Any]
) -> None:
    """A limit that the prompt leaves no room for is lowered by vLLM 0.32; releases before refused the call."""
    reply = await respond(vllm, client, input=text_for(vllm, CONTEXT_TOKENS - 5), ignore_eos=True, **params)
    assert (reply.facts.finish, reply.facts.usage.output_tokens) == ("max_tokens", 5)
    assert reply.tokens is not None
    assert len(reply.tokens.prompt_ids) + len(reply.tokens.token_ids) == CONTEXT_TOKENS


async def test_a_limit_larger_than_the_context_by_itself_is_a_faulty_request(vllm: Any, client: PolicyClient) -> None:
    with pytest.raises(ModelRejected, match="400"):
        await respond(vllm, client, input="Hello", max_output_tokens=CONTEXT_TOKENS + 1)


async def test_another_faulty_request_is_rejected(vllm: Any, client: PolicyClient) -> None:
    with pytest.raises(ModelRejected, match="temperature"):
        await respond(vllm, client, input="Hello", temperature=-1.0)
