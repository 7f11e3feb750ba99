"""A whole farm, as `farm up` starts it, whose policy is a real vLLM."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from api.local.local_farm import local_farm
from gym.client import connect_sync

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

CITIES = ("Nairobi", "Osaka", "Lima", "Cairo", "Toronto", "Hanoi", "Bergen", "Dakar", "Oslo", "Quito")


def row(city: str) -> dict[str, Any]:
    question = [{"role": "user", "content": f"What is the weather like in {city}?"}]
    return {"environment": "weather", "responses_create_params": {"input": question, "temperature": 1.0}}


def test_twenty_rollouts_come_back_with_the_tokens_that_vllm_sampled(vllm: Any, tmp_path: Path) -> None:
    with local_farm(tmp_path, options=["--no-flower", "--workers", "1"]) as farm, connect_sync(farm.url) as connected:
        batch = connected.submit([row(city) for city in CITIES], num_samples=2, policy=vllm.policy)
        results = list(batch.results(view="training"))
        ledger = batch.status().ledger
    assert [result.error for result in results if result.error is not None] == []
    assert Counter(result.outcome for result in results) == {"succeeded": 20}
    assert ledger.succeeded == ledger.submitted == 20
    assert sum(result.reward or 0.0 for result in results) >= 15, "the model knows these cities"
    for result in results:
        assert result.segments
        for segment in result.segments:
            assert len(segment.token_ids) == len(segment.loss_mask) == len(segment.logprobs)
            trained = [token for token, bit in zip(segment.token_ids, segment.loss_mask, strict=True) if bit]
            assert trained
            assert all(value <= 0 for value in segment.logprobs)
            assert "".join(vllm.text_of(trained)).endswith("<|end|>")


def test_an_outside_agent_in_token_mode_is_captured_as_one_segment(vllm: Any, tmp_path: Path) -> None:
    tool = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    offered = {"type": "function", "function": {"name": "get_weather", "parameters": tool}}
    messages: list[Any] = [{"role": "user", "content": "What is the weather like in Lima?"}]
    asked: Any = {"model": "tokens", "tools": [offered], "max_tokens": 200, "temperature": 0.0}
    spec = vllm.policy.model_copy(update={"api": "tokens", "tool_parser": "hermes"})
    with (
        local_farm(tmp_path, options=["--no-flower", "--workers", "0"]) as farm,
        connect_sync(farm.url) as connected,
        OpenAI(base_url=f"{farm.proxy_url}/rollouts/mine/v1", api_key="none", timeout=120) as client,
    ):
        connected.put_policy("tokens", spec)
        called = client.chat.completions.create(messages=messages, **asked).choices[0].message
        messages.append(called.model_dump(exclude_none=True))
        messages += [{"role": "tool", "tool_call_id": call.id, "content": "cold"} for call in called.tool_calls or ()]
        told = client.chat.completions.create(messages=messages, **asked).choices[0].message
        shown = httpx.get(f"{farm.url}/v1/rollouts/mine", timeout=30).raise_for_status().json()
    assert told.content
    assert [call["has_tokens"] for call in shown["calls"]] == [True, True]
    [segment] = shown["segments"]
    assert "cold" in vllm.text_of(segment["token_ids"])
