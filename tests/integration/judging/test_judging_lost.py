"""Rollouts whose judging was lost: by a Redis that lost writes, and by a reward that cannot be stored."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from typing import Any

from gym.state.ledger.judging import Judging
from gym.state.redis.store import Store

EQUAL = "[[say Verdict: EQUAL]]"


async def assign(judged_farm: Any, batch_id: str, worker: str) -> str:
    """A rollout that waits for its judge, and that Redis takes to be with a worker which has never heard of it."""
    store = Store.connect((judged_farm.farm.data_dir / "redis" / "url").read_text())
    judging = Judging(store)
    async with asyncio.timeout(60):
        # its judge is parked by now, or about to be
        while not (taken := await judging.probe(batch_id, "equality", seed=0)):  # noqa: ASYNC110  nothing says when
            await asyncio.sleep(0.02)
    [claim] = await judging.claim(batch_id, worker, secrets.token_hex(4), taken)
    await store.close()
    return claim.member


def test_what_redis_assigns_to_a_judge_worker_that_does_not_hold_it_is_judged_within_a_lease(judged_farm: Any) -> None:
    workers = judged_farm.http.get("/v1/workers").json()["items"]
    [worker] = [each["worker"] for each in workers if "per_judge" in each]
    judged_farm.judge.leave()
    try:
        batch_id = judged_farm.submit([judged_farm.row(f"answer {number}", EQUAL) for number in range(8)])
        judged_farm.until(lambda: judged_farm.ledger(batch_id)["judging"] == 8)
        asyncio.run(assign(judged_farm, batch_id, worker))
    finally:
        judged_farm.judge.come_back()
    found = judged_farm.results(batch_id)
    assert Counter((result["outcome"], result["reward"]) for result in found) == {("succeeded", 1.0): 8}


def test_a_judged_reward_that_cannot_be_stored_is_one_failed_result(judged_farm: Any) -> None:
    row = {
        "responses_create_params": {"input": "[[say 7]]"},
        "environment": "asking",
        "asks": ["equality"],
    }
    odd, *others = judged_farm.results(judged_farm.submit([row | {"odd": True}, row, row]))
    assert (odd["outcome"], odd["reward"], odd["error"]["kind"]) == ("failed", None, "verifier_error")
    assert "length" in odd["error"]["message"]
    assert [result["outcome"] for result in others] == ["succeeded"] * 2
