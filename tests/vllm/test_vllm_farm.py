"""A whole farm, as `farm up` starts it, whose policy is a real vLLM."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from api.cli.local_farm import local_farm
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
