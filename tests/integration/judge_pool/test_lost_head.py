"""Judging of a farm when the head of its judges' Ray is lost, and pools that fail to start."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from redis import Redis

from api.local.local_farm import LocalFarm, free_port, local_farm

pytestmark = pytest.mark.timeout(400)
WAIT_S = 150.0
CONFIGS = Path(__file__).parents[3] / "configs"
NOTICED = {"RAY_gcs_rpc_server_reconnect_timeout_s": "5"}
"""How soon Ray ends what has lost its head; 60 s if not told."""
REFERENCE = "Bread rises slowly."


def until(found: Callable[[], Any]) -> Any:
    """Wait until the condition is true and return its value."""
    give_up_at = time.monotonic() + WAIT_S
    while not (seen := found()):
        assert time.monotonic() < give_up_at, "it did not come to pass in time"
        time.sleep(0.1)
    return seen


class Judged:
    """A farm whose judge `similarity` is pooled."""

    def __init__(self, farm: LocalFarm, http: httpx.Client, redis: Redis) -> None:
        self._farm, self._http, self._redis = farm, http, redis

    def pool(self) -> dict[str, Any]:
        """The running pool; nothing while none runs."""
        stored = self._redis.get("farm:judge-pool")
        return json.loads(stored) if isinstance(stored, bytes) else {}

    def replica(self) -> dict[str, Any] | None:
        """The one that is ready."""
        there = self.pool().get("judges", {}).get("similarity", {"replicas": []})["replicas"]
        return next((one for one in there if one["state"] == "ready"), None)

    def published(self) -> set[str]:
        """Return the states in Redis, with or without leases."""
        return {json.loads(info)["state"] for info in self._redis.hvals("farm:judge-replica-info")}  # type: ignore[union-attr]

    def submit(self, name: str) -> None:
        """One rollout that wants to be judged."""
        row = {
            "responses_create_params": {"input": [{"role": "user", "content": f"[[say {name}]]"}]},
            "environment": "essay_similarity",
            "reference": REFERENCE,
            "floor": -1.0,
        }
        self._http.post("/v1/batches", json={"batch_id": name, "rows": [row]}).raise_for_status()

    def reward(self, name: str) -> float | None:
        """Its reward; None while it waits."""
        batch = self._http.get(f"/v1/batches/{name}").json()
        if batch["state"] == "running":
            return None
        [item] = self._http.get(f"/v1/batches/{name}/results").json()["items"]
        assert item["error"] is None, item["error"]
        reward: float = item["reward"]
        return reward

    def process(self, name: str) -> psutil.Process | None:
        """One below `farm up`."""
        family = psutil.Process(self._farm.process.pid).children(recursive=True)
        return next((each for each in family if name in each.name()), None)


@contextmanager
def judged(config: str, settings: dict[str, str]) -> Iterator[Judged]:
    """A farm with that configuration."""
    options = ["--config", str(CONFIGS / config), "--workers", "1", "--no-flower"]
    with (
        tempfile.TemporaryDirectory(prefix="farm-pool-") as folder,
        local_farm(Path(folder), options=options, settings={**NOTICED, **settings}) as farm,
        httpx.Client(base_url=farm.url, timeout=60) as http,
        Redis.from_url(farm.redis_url) as redis,
    ):
        yield Judged(farm, http, redis)


@pytest.mark.slow
def test_judging_waits_for_an_attached_cluster_that_is_lost_and_comes_back(start_somebodys_ray: Any) -> None:
    port, token = str(free_port()), "5" * 64
    head = {"RAY_GCS_SERVER_PORT": port, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, **NOTICED}
    attached = {"FARM_POOL_RAY_HEAD_NODE_ADDRESS": f"127.0.0.1:{port}", "RAY_AUTH_TOKEN": token}
    with start_somebodys_ray(**head) as first:
        assert first.address == f"127.0.0.1:{port}"
        with judged("single_ray_cluster.yaml", attached) as farm:
            before = until(farm.replica)
            pool = farm.pool()["pid"]
            [gcs] = [each for each in psutil.Process(first.process.pid).children() if "gcs_server" in each.name()]
            gcs.kill()
            until(lambda: not psutil.pid_exists(pool) and not farm.pool())
            until(lambda: farm.published() == {"down"})
            farm.submit("meanwhile")
            until(lambda: not psutil.pid_exists(before["pid"]))
            assert farm.reward("meanwhile") is None
            with start_somebodys_ray(**head):
                after = until(farm.replica)
                assert after["pid"] != before["pid"]
                assert until(lambda: farm.reward("meanwhile")) > -1


@pytest.mark.slow
def test_a_ray_of_its_own_is_started_again_when_its_head_is_killed() -> None:
    with judged("own_ray_cluster.yaml", {}) as farm:
        before = until(farm.replica)
        head = farm.process("gcs_server")
        assert head is not None
        head.kill()
        until(lambda: not psutil.pid_exists(before["pid"]))
        farm.submit("meanwhile")
        until(lambda: (now := farm.replica()) and now["pid"] != before["pid"])
        assert until(lambda: farm.reward("meanwhile")) > -1


def _up(tmp_path: Path, **settings: Any) -> tuple[int, str]:
    """Run `farm up` to its end and return its exit status and output."""
    given = {f"FARM_{name.upper()}": json.dumps(value) for name, value in settings.items()}
    ports = ["--api-port", "0", "--proxy-port", "0", "--no-flower"]
    with (tmp_path / "up.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "api.cli.main", "up", "--data-dir", str(tmp_path / "data"), *ports],
            stdout=subprocess.DEVNULL,
            stderr=log,
            env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "FARM_WORKER_PROCESSES": "1", **given},
        )
        try:
            status = process.wait(WAIT_S)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(60)
    return status, (tmp_path / "up.log").read_text()


def test_a_kind_that_needs_a_gpu_and_was_given_none_is_an_error_before_anything_starts(tmp_path: Path) -> None:
    status, said = _up(tmp_path, judges={"equality": {"kind": "llm", "model": "m"}}, pool_judges={"equality": {}})
    assert status == 2
    assert "num_gpus is 0" in said
    assert not (tmp_path / "data" / "logs").exists()


@pytest.mark.slow
def test_a_judge_that_wants_a_gpu_where_there_is_none_ends_the_start_with_what_is_there(tmp_path: Path) -> None:
    status, said = _up(
        tmp_path,
        judges={"equality": {"kind": "llm", "model": "m"}},
        pool_judges={"equality": {"num_gpus": 1}},
        pool_num_gpus=0,
        pool_num_cpus=1,
    )
    assert status != 0
    assert "judge equality: a replica needs 0.1 CPU, 1 GPU on one node" in " ".join(said.split())
    assert "judge was started 1 times" in said
