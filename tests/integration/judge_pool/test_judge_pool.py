"""The pool on a real Ray of its own, on loopback, with GPUs that Ray only believes in."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from redis import Redis

WAIT_S = 150.0
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
STUB = str(Path(__file__).with_name("stub_judge.py"))
COMMAND = [sys.executable, STUB, "{host}", "{port}"]
CPU_JUDGE = {"kind": "embedding"}


def until(found: Callable[[], Any], log: Path) -> Any:
    """What it returns once it is true."""
    give_up_at = time.monotonic() + WAIT_S
    while not (seen := found()):
        assert time.monotonic() < give_up_at, log.read_text()[-4000:]
        time.sleep(0.1)
    return seen


@contextmanager
def pool(tmp_path: Path, redis_url: str, settings: dict[str, Any]) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """`farm judge`, ended and waited for; nothing of it may be left."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FARM_", "RAY_"))}
    judges = dict.fromkeys(settings["judges"], CPU_JUDGE)
    given = {
        f"FARM_POOL_{name.upper()}": value if isinstance(value, str) else json.dumps(value)
        for name, value in settings.items()
    }
    log = tmp_path / "judge.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "api.cli.main", "judge", "--data-dir", str(tmp_path), "--redis-url", redis_url],
            stdout=out,
            stderr=out,
            env={**kept, "FARM_JUDGES": json.dumps(judges), "HOME": str(tmp_path), **given},
            start_new_session=True,
        )
    try:
        yield process, log
    finally:
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        _, left = psutil.wait_procs(family, timeout=15)
        for one in left:
            one.kill()
    assert not left, [one.pid for one in left]


def status(redis: Redis) -> dict[str, Any]:
    stored = redis.get("farm:judge-pool")
    return json.loads(stored) if stored else {"judges": {}}


def ready(redis: Redis, judge: str) -> list[dict[str, Any]]:
    members = status(redis)["judges"].get(judge, {"replicas": []})["replicas"]
    return [one for one in members if one["state"] == "ready"]


@pytest.mark.parametrize("wanted", [{"num_gpus": 4}, {"resources": {"extra_gpu": 1}}])
def test_what_no_node_can_hold_is_an_error_at_start(tmp_path: Path, redis_url: str, wanted: dict[str, Any]) -> None:
    settings = {"num_cpus": 1, "num_gpus": 2, "judges": {"large": {"command": COMMAND, **wanted}}}
    with pool(tmp_path, redis_url, settings) as (process, log):
        assert process.wait(WAIT_S) == 2
        assert "no node of the cluster has that: 1 CPU, 2 GPU" in log.read_text()


OTHERS = """
import ray, sys
ray.init(address="local", num_cpus=1, object_store_memory=78643200, include_dashboard=False, namespace="theirs",
         _temp_dir=sys.argv[1], logging_level="error")
@ray.remote(num_cpus=0)
class Theirs:
    def ping(self):
        return "unharmed"
theirs = Theirs.options(name="theirs").remote()
ray.get(theirs.ping.remote())
print("address", ray.get_runtime_context().gcs_address, flush=True)
for line in sys.stdin:
    print(ray.get(theirs.ping.remote()), flush=True)
"""


def test_somebody_elses_cluster_is_used_and_left_unharmed(tmp_path: Path, redis_url: str) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        theirs = subprocess.Popen(
            [sys.executable, "-c", OTHERS, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**kept, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "HOME": str(tmp_path)},
        )
        assert theirs.stdin is not None
        assert theirs.stdout is not None
        try:
            word, _, address = theirs.stdout.readline().decode().strip().partition(" ")
            assert word == "address"
            settings = {"ray_head_node_address": address, "judges": {"judge": {"command": COMMAND, "num_cpus": 0}}}
            with Redis.from_url(redis_url) as redis, pool(tmp_path, redis_url, settings) as (process, log):
                until(lambda: ready(redis, "judge"), log)
                assert status(redis)["attached"]
                assert status(redis)["address"] == address
                process.terminate()
                assert process.wait(60) == 0, log.read_text()
            theirs.stdin.write(b"still?\n")
            theirs.stdin.flush()
            assert theirs.stdout.readline() == b"unharmed\n"
        finally:
            theirs.stdin.close()
            try:
                theirs.wait(30)
            except subprocess.TimeoutExpired:
                theirs.kill()
                theirs.wait()
            theirs.stdout.close()


def test_an_address_where_nobody_answers_is_an_error_that_names_the_port(tmp_path: Path, redis_url: str) -> None:
    settings = {"ray_head_node_address": "127.0.0.1:9", "judges": {"judge": {"command": COMMAND}}}
    with pool(tmp_path, redis_url, settings) as (process, log):
        assert process.wait(WAIT_S) == 2
        assert "nothing answers at 127.0.0.1:9" in log.read_text()
