"""What a caller is shown of a real vLLM's answers: how they ended, and the texts of tokens."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gym.model_client.client import ModelReply, ModelRequest, PolicyClient
from gym.model_client.forward import ChatCall, ContextOverflow

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600), pytest.mark.anyio]

WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather in a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
QUESTION = "Is it warm in Lima right now?"


async def respond(vllm: Any, client: PolicyClient, limit: int) -> ModelReply:
    return await client.respond(
        ModelRequest(
            policy=vllm.record,
            params={"input": QUESTION, "tools": [WEATHER], "max_output_tokens": limit, "temperature": 0.0},
            sticky_key="g",
            deadline=asyncio.get_running_loop().time() + 100,
            rollout_id="r",
            attempt=1,
            turn=0,
        )
    )


async def test_an_answer_that_a_limit_cut_behind_its_call_is_incomplete(vllm: Any, client: PolicyClient) -> None:
    """The server itself says `tool_calls` of it."""
    whole = await respond(vllm, client, 400)
    assert (whole.facts.finish, whole.items[-1]["status"]) == ("stop", "completed")
    ids = list(whole.tokens.token_ids) if whole.tokens is not None else []
    limit = next(n for n in range(1, len(ids)) if vllm.text_of(ids[:n]).endswith("</tool_call>"))
    cut = await respond(vllm, client, limit)
    assert [item["type"] for item in cut.items][-1] == "function_call"
    assert cut.items[-1]["arguments"] == whole.items[0]["arguments"]
    assert (cut.facts.finish, cut.items[-1]["status"]) == ("max_tokens", "incomplete")


async def test_who_asks_for_log_probabilities_reads_texts_and_the_ids_are_captured(
    vllm: Any, client: PolicyClient
) -> None:
    for _ in range(2):  # the first call finds out what the server can do
        reply = await client.complete(
            ChatCall(
                policy=vllm.record,
                body={
                    "messages": [{"role": "user", "content": QUESTION}],
                    "max_tokens": 5,
                    "logprobs": True,
                    "top_logprobs": 3,
                },
                sticky_key="g",
                deadline=asyncio.get_running_loop().time() + 100,
                request_id="r",
            )
        )
        assert not isinstance(reply, ContextOverflow)
        assert reply.tokens is not None
        assert reply.tokens.source == "server"
        entries = reply.completion["choices"][0]["logprobs"]["content"]
        assert len(entries) == len(reply.tokens.token_ids)
        texts = [each["token"] for entry in entries for each in (entry, *entry["top_logprobs"])]
        assert not any(text.startswith("token_id:") for text in texts)
