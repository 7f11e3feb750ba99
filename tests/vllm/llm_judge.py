"""A farm whose judge `equality` is a language model that its own Ray places and vLLM serves, on a CPU or on a GPU."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
from redis import Redis

from api.local.local_farm import LocalFarm, local_farm

JUDGE = "equality"
READY_TIMEOUT_S = 600.0
LABELS = ("Verdict: EQUAL", "Verdict: DIFFERENT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """How vLLM serves the judge's model: the interpreter that has it, and what a replica takes of the cluster."""

    python: str
    model: str
    needs: Mapping[str, Any]
    cluster: Mapping[str, Any]
    args: Sequence[str] = ()
    environment: Mapping[str, str] | None = None
    sampling: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class LlmJudgeFarm:
    """The farm, and what tests ask of it."""

    farm: LocalFarm
    http: httpx.Client
    redis: Redis

    def ready(self) -> list[dict[str, Any]]:
        """The judge's replicas that can be asked, as `farm judge status` shows them."""
        stored = self.redis.get("farm:judge-pool")
        judges = json.loads(stored)["judges"] if isinstance(stored, bytes) else {}
        return [one for one in judges.get(JUDGE, {"replicas": []})["replicas"] if one["state"] == "ready"]

    def submit(self, rows: list[dict[str, Any]]) -> str:
        """The id of a new batch, whose judge may take as long as vLLM takes to start."""
        body = {"rows": rows, "limits": {"judge_timeout_s": 2 * READY_TIMEOUT_S}}
        batch_id: str = self.http.post("/v1/batches", json=body).raise_for_status().json()["batch_id"]
        return batch_id

    def ledger(self, batch_id: str) -> dict[str, int]:
        """How many of the batch's rollouts are where."""
        found: dict[str, int] = self.http.get(f"/v1/batches/{batch_id}").raise_for_status().json()["ledger"]
        return found

    def results(self, batch_id: str) -> list[dict[str, Any]]:
        """All of them, once the batch is done."""
        url = f"/v1/batches/{batch_id}"
        self.until(lambda: self.http.get(url).raise_for_status().json()["state"] != "running")
        page = self.http.get(f"{url}/results", params={"limit": 1000}).raise_for_status().json()
        assert page["done"]
        items: list[dict[str, Any]] = page["items"]
        return items

    def until(self, found: Callable[[], Any]) -> Any:
        """What it returns once it is true."""
        give_up_at = time.monotonic() + READY_TIMEOUT_S
        while not (seen := found()):
            assert time.monotonic() < give_up_at, (self.farm.data_dir / "up.log").read_text()[-4000:]
            time.sleep(0.2)
        return seen


@contextmanager
def llm_judge_farm(folder: Path, served: Served) -> Iterator[LlmJudgeFarm]:
    """Start it and wait for the replica; at the end nothing of it is left."""
    judge = {"kind": "llm", "model": served.model, "call_timeout_s": 120, "cache": False}
    if served.sampling is not None:
        judge["sampling"] = dict(served.sampling)
    pooled = {
        "python": served.python,
        "args": list(served.args),
        "environment": dict(served.environment or {}),
        "ready_timeout_s": READY_TIMEOUT_S,
        **served.needs,
    }
    settings = {"FARM_JUDGES": json.dumps({JUDGE: judge}), "FARM_POOL_JUDGES": json.dumps({JUDGE: pooled})}
    settings |= {f"FARM_POOL_{name.upper()}": json.dumps(value) for name, value in served.cluster.items()}
    with (
        local_farm(folder, options=["--workers", "1", "--no-flower"], settings=settings) as farm,
        httpx.Client(base_url=farm.url, timeout=60) as http,
        Redis.from_url(farm.redis_url) as redis,
    ):
        judged = LlmJudgeFarm(farm, http, redis)
        judged.until(judged.ready)
        yield judged
        family = psutil.Process(farm.process.pid).children(recursive=True)
    _, left = psutil.wait_procs(family, timeout=30)
    for process in left:
        process.kill()
    assert not left, [process.pid for process in left]


def rows_to_judge(count: int) -> list[dict[str, Any]]:
    """Tasks whose answers are worded otherwise than what is expected, so that only the judge can say."""
    return [
        {
            "environment": "equivalence",
            "responses_create_params": {"input": [{"role": "user", "content": f"[[say it weighs {number} grams]]"}]},
            "question": f"What does parcel {number} weigh?",
            "expected_answer": f"{number if number % 2 else number + 1} g",
        }
        for number in range(1, count + 1)
    ]
