"""The topology own_ray_cluster: one farm that starts a Ray for its judges, with GPUs that Ray only believes in."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from redis import Redis
from threadpoolctl import threadpool_limits

from api.local.local_farm import LocalFarm, local_farm
from workers.judge_server.item import Item

WAIT_S = 150.0
pytestmark = pytest.mark.timeout(400)
ROOT = Path(__file__).parents[3]
CONFIG = ROOT / "configs" / "own_ray_cluster.yaml"
STUB = {"command": [sys.executable, str(Path(__file__).with_name("stub_judge.py")), "{host}", "{port}"], "num_cpus": 0}
REFERENCE = "Bread is made slowly, and its smell makes people happy."
ESSAYS = [f"Loaf {number} rose slowly and smelled of {number} mornings." for number in range(300)]
REMARKS = [f"{word} number {number}" for number in range(40) for word in ("thanks", "damn", "idiot", "bread", "shit")]
POOLED: dict[str, dict[str, Any]] = {
    "similarity": {"num_cpus": 0.5, "min_replicas": 2, "max_replicas": 2},
    "civility": {"num_cpus": 0.1},
    "half": {"num_gpus": 0.5, "min_replicas": 2, "max_replicas": 2, **STUB},
    "both": {"num_gpus": 2, **STUB},
    "apart": {"resources": {"extra_gpu": 1}, **STUB},
    "none": STUB,
}
JUDGES: dict[str, dict[str, Any]] = {name: {"kind": "embedding"} for name in POOLED} | {
    "similarity": {"kind": "embedding", "batch_size": 8, "cache": False},
    "civility": {"kind": "reward_model", "model": "clean-language", "cache": False},
}


def until(found: Callable[[], Any]) -> Any:
    """Wait until the condition is true and return its value."""
    give_up_at = time.monotonic() + WAIT_S
    while not (seen := found()):
        assert time.monotonic() < give_up_at, "it did not come to pass in time"
        time.sleep(0.1)
    return seen


@dataclass(frozen=True, slots=True)
class PooledFarm:
    """A farm with its pool, and the tests' requests to both."""

    farm: LocalFarm
    http: httpx.Client
    redis: Redis

    def pool(self) -> dict[str, Any]:
        """Return the output of `farm judge status`; it has no judges while no pool runs."""
        stored = self.redis.get("farm:judge-pool")
        found: dict[str, Any] = json.loads(stored) if isinstance(stored, bytes) else {"judges": {}}
        return found

    def ready(self, judge: str) -> list[dict[str, Any]]:
        """The judge's replicas that can be asked."""
        there = self.pool()["judges"].get(judge, {"replicas": []})["replicas"]
        return [one for one in there if one["state"] == "ready"]

    def judge(self, *words: str) -> str:
        """Return the output of `farm judge WORDS`."""
        command = [sys.executable, "-m", "api.cli.main", "judge", *words, "--data-dir", str(self.farm.data_dir)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


@pytest.fixture(scope="module")
def pooled() -> Iterator[PooledFarm]:
    """One farm and one Ray for all these tests."""
    settings = {
        "FARM_JUDGES": json.dumps(JUDGES),
        "FARM_ENVIRONMENTS": json.dumps([f"{Path(__file__).with_name('civility.py')}:Civility"]),
        "FARM_POOL_JUDGES": json.dumps(POOLED),
        "FARM_POOL_NUM_GPUS": "3",
        "FARM_POOL_RESOURCES": json.dumps({"extra_gpu": 1}),
    }
    options = ["--config", str(CONFIG), "--workers", "1", "--no-flower"]
    with tempfile.TemporaryDirectory(prefix="farm-pool-") as folder:
        with (
            local_farm(Path(folder), options=options, settings=settings) as farm,
            httpx.Client(base_url=farm.url, timeout=60) as http,
            Redis.from_url(farm.redis_url) as redis,
        ):
            pooled = PooledFarm(farm, http, redis)
            until(lambda: all(len(pooled.ready(name)) == each.get("min_replicas", 1) for name, each in POOLED.items()))
            family = psutil.Process(farm.process.pid).children(recursive=True)
            assert any("raylet" in process.name() for process in family)
            yield pooled
        _, left = psutil.wait_procs(family, timeout=20)
        for process in left:
            process.kill()
        assert not left, [process.cmdline() for process in left]


def test_500_rollouts_are_scored_once_each_while_a_replica_is_killed_in_the_middle(pooled: PooledFarm) -> None:
    rows = [_row(essay, environment="essay_similarity", reference=REFERENCE, floor=-1.0) for essay in ESSAYS]
    rows += [_row(remark, environment="civility") for remark in REMARKS]
    victim = pooled.ready("similarity")[0]["pid"]
    batch_id = pooled.http.post("/v1/batches", json={"rows": rows}).raise_for_status().json()["batch_id"]
    give_up_at = time.monotonic() + 60
    while not (ledger := pooled.http.get(f"/v1/batches/{batch_id}").json()["ledger"])["judging"]:
        assert time.monotonic() < give_up_at, ledger
    os.kill(victim, signal.SIGKILL)
    until(lambda: pooled.http.get(f"/v1/batches/{batch_id}").json()["state"] != "running")
    items = pooled.http.get(f"/v1/batches/{batch_id}/results", params={"limit": 1000}).json()["items"]
    items.sort(key=lambda result: [int(part) for part in result["rollout_id"].split(":")[-2:]])
    assert len(rows) == len(items) == len({item["rollout_id"] for item in items}) == 500
    assert {len(item["verdicts"]) for item in items} == {1}
    assert [item["reward"] for item in items] == pytest.approx(_directly(), abs=1e-5)
    again = until(lambda: (there := pooled.ready("similarity"))[1:] and there)
    assert victim not in [one["pid"] for one in again]


def test_halves_share_a_gpu_and_a_replica_may_span_two(pooled: PooledFarm) -> None:
    halves = [one["gpus"] for one in pooled.ready("half")]
    [both] = pooled.ready("both")
    assert halves[0] == halves[1]
    assert sorted([halves[0], *both["gpus"].split(",")]) == ["0", "1", "2"]


def test_a_judge_that_asked_for_no_gpu_sees_none(pooled: PooledFarm) -> None:
    for name in ("none", "civility"):
        assert [one["gpus"] for one in pooled.ready(name)] == [""]


def test_another_takes_the_place_of_a_replica_whose_actor_was_killed(pooled: PooledFarm) -> None:
    [before] = pooled.ready("both")
    psutil.Process(before["pid"]).parent().kill()  # type: ignore[union-attr]  # it has one: its actor
    [after] = until(lambda: [one for one in pooled.ready("both") if one["pid"] != before["pid"]])
    assert sorted(after["gpus"].split(",")) == sorted(before["gpus"].split(","))
    assert not psutil.pid_exists(before["pid"]) or psutil.Process(before["pid"]).status() == psutil.STATUS_ZOMBIE


def test_a_drained_judge_comes_back_when_it_is_scaled(pooled: PooledFarm) -> None:
    pooled.judge("drain", "half")
    until(lambda: not pooled.pool()["judges"]["half"]["replicas"])
    assert "half: 0 of 2 to 2 wanted" in pooled.judge("status")
    pooled.judge("scale", "half", "1", "2")
    until(lambda: len(pooled.ready("half")) == 1)


def test_nothing_of_ray_or_its_judges_listens_beyond_loopback(pooled: PooledFarm) -> None:
    everyone = psutil.Process(pooled.farm.process.pid).children(recursive=True)
    listening = {
        (process.name(), connection.laddr.ip)
        for process in everyone
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert any("gcs_server" in name for name, _ in listening)
    assert {ip for _, ip in listening} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, listening


def _row(said: str, **data: Any) -> dict[str, Any]:
    return {"responses_create_params": {"input": [{"role": "user", "content": f"[[say {said}]]"}]}, **data}


def _directly() -> list[float | None]:
    from workers.judge_server.classifier import CleanLanguage
    from workers.judge_server.embedding import SentenceEmbeddings

    embeddings, classifier = SentenceEmbeddings.load("all-minilm-l6-v2"), CleanLanguage.load("clean-language")
    with threadpool_limits(limits=1, user_api="blas"):
        cosines = embeddings.scores([Item(essay, "", REFERENCE) for essay in ESSAYS])
    return [*cosines, *classifier.scores([Item(remark, "", "") for remark in REMARKS])]
