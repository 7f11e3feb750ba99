"""A whole farm whose embedding judge is placed by Ray, and loses a replica in the middle of a batch."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis
from threadpoolctl import threadpool_limits

from api.cli.local_farm import local_farm
from gym.state.embedded import embedded_url
from workers.judge_server.embedding import SentenceEmbeddings
from workers.judge_server.scorer import Item

pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]
REFERENCE = "Bread is made slowly, and its smell makes people happy."
ROLLOUTS = 120


def until(found: Callable[[], Any], wait_s: float = 200.0) -> Any:
    give_up_at = time.monotonic() + wait_s
    while not (seen := found()):
        assert time.monotonic() < give_up_at, "it did not come to pass in time"
        time.sleep(0.1)
    return seen


def test_a_batch_is_scored_once_each_while_a_replica_is_killed() -> None:
    settings = {
        "FARM_JUDGES": json.dumps({"similarity": {"kind": "embedding", "batch_size": 4, "cache": False}}),
        "FARM_POOL_NUM_CPUS": "2",
        "FARM_POOL_JUDGES": json.dumps({"similarity": {"num_cpus": 0.1, "min_replicas": 2, "max_replicas": 2}}),
    }
    essays = [f"Loaf number {number} rose slowly and smelled of {number} mornings." for number in range(ROLLOUTS)]
    rows = [
        {
            "responses_create_params": {"input": [{"role": "user", "content": f"[[say {essay}]]"}]},
            "environment": "essay_similarity",
            "reference": REFERENCE,
            "floor": -1.0,
        }
        for essay in essays
    ]
    with (
        tempfile.TemporaryDirectory(prefix="farm-pool-") as folder,
        local_farm(Path(folder), options=["--workers", "1", "--no-flower"], settings=settings) as farm,
        httpx.Client(base_url=farm.url, timeout=60) as http,
        Redis.from_url(embedded_url(Path(folder))) as redis,
    ):

        def ready() -> list[dict[str, Any]]:
            stored = redis.get("farm:judge-pool")
            replicas = json.loads(stored)["judges"]["similarity"]["replicas"] if stored else []
            return [one for one in replicas if one["state"] == "ready"]

        until(lambda: len(ready()) == 2)
        batch_id = http.post("/v1/batches", json={"rows": rows}).json()["batch_id"]

        def ledger() -> dict[str, int]:
            found: dict[str, int] = http.get(f"/v1/batches/{batch_id}").json()["ledger"]
            return found

        until(lambda: ledger()["judging"] and ledger()["succeeded"] < ROLLOUTS)
        victim = ready()[0]["pid"]
        os.kill(victim, signal.SIGKILL)
        assert ledger()["succeeded"] < ROLLOUTS
        until(lambda: http.get(f"/v1/batches/{batch_id}").json()["state"] != "running")
        items = http.get(f"/v1/batches/{batch_id}/results", params={"limit": 1000}).json()["items"]
        until(lambda: len(ready()) == 2 and victim not in [one["pid"] for one in ready()])
    items.sort(key=lambda result: [int(part) for part in result["rollout_id"].split(":")[-2:]])
    assert len({item["rollout_id"] for item in items}) == len(items) == ROLLOUTS
    model = SentenceEmbeddings.load("all-minilm-l6-v2")
    with threadpool_limits(limits=1, user_api="blas"):
        directly = model.scores([Item(essay, "", REFERENCE) for essay in essays])
    assert [item["reward"] for item in items] == pytest.approx(directly, abs=1e-5)
    assert {len(item["verdicts"]) for item in items} == {1}
