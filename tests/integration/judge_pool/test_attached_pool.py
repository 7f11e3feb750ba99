"""The topology single_ray_cluster: the pool on a Ray cluster that another process has started and continues to use."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = pytest.mark.timeout(400)
STUB = {"command": [sys.executable, str(Path(__file__).with_name("stub_judge.py")), "{host}", "{port}"], "num_cpus": 0}
JUDGES = {"judge": STUB}
LIMIT_S = 5.0
TIMED_CHECK = """
import sys, time
from workers.judge_pool.ray_cluster import RayUnusable, check_versions, import_ray
import_ray()
began = time.monotonic()
try:
    check_versions(sys.argv[1])
except RayUnusable as error:
    print(time.monotonic() - began, error)
"""


def attached(ray: Any, **pool: Any) -> dict[str, Any]:
    """The section `pool` for that cluster."""
    return {"ray_head_node_address": ray.address, "judges": JUDGES, "environment": {"HOME": str(ray.home)}, **pool}


def test_somebody_elses_cluster_is_used_and_left_unharmed(somebodys_ray: Any, run_pool: Any) -> None:
    with run_pool(attached(somebodys_ray)) as pool:
        [replica] = pool.until(lambda: pool.ready("judge"))
        assert pool.status()["attached"]
        assert pool.status()["address"] == somebodys_ray.address
        assert somebodys_ray.actors() == {"theirs": ["theirs"], "rollout-farm": [f"judge {replica['replica']}"]}
        pool.process.terminate()
        assert pool.ended()[0] == 0
    assert somebodys_ray.actors() == {"theirs": ["theirs"]}
    assert somebodys_ray.ask("ping") == "unharmed"


@pytest.mark.slow
def test_a_pool_that_is_killed_takes_its_actors_and_nothing_else(somebodys_ray: Any, run_pool: Any) -> None:
    with run_pool(attached(somebodys_ray)) as pool:
        pool.until(lambda: pool.ready("judge"))
        os.kill(pool.process.pid, signal.SIGKILL)
        pool.until(lambda: somebodys_ray.actors() == {"theirs": ["theirs"]})
    assert somebodys_ray.ask("ping") == "unharmed"


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("ray_version", "2.9.3", "Ray: the cluster has 2.9.3, this process has "),
        pytest.param(
            *("python_version", "3.11.99", "Python: the cluster has 3.11.99, this process has "), marks=pytest.mark.slow
        ),
    ],
)
def test_another_version_is_told_before_anything_attaches(
    somebodys_ray: Any, run_pool: Any, field: str, value: str, named: str
) -> None:
    before = somebodys_ray.ask(f"say {field} {value}")
    try:
        with run_pool(attached(somebodys_ray)) as pool:
            status, said = pool.ended()
    finally:
        somebodys_ray.ask(f"say {field} {before}")
    assert status == 2
    assert named in said
    assert "pool.python" in said


@pytest.mark.slow
@pytest.mark.skipif("FARM_TEST_OTHER_RAY" not in os.environ, reason="FARM_TEST_OTHER_RAY names no interpreter")
def test_a_cluster_of_another_version_of_ray_is_refused_within_seconds(ray_of_another_version: Any) -> None:
    other = ray_of_another_version
    found = subprocess.run(
        [sys.executable, "-c", TIMED_CHECK, other.address],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "HOME": str(other.home)},
    )
    seconds, _, said = found.stdout.partition(" ")
    assert "Ray: the cluster has " in said, found.stderr
    assert "Python" not in said.partition(". Set pool.python")[0]
    assert float(seconds) < LIMIT_S
    assert json.loads(other.ask("actors")) == [{"name": "theirs", "namespace": "theirs"}]


@pytest.mark.slow
def test_a_wrong_token_is_refused_in_words(somebodys_ray: Any, run_pool: Any, tmp_path: Path) -> None:
    pool_settings = attached(somebodys_ray)
    pool_settings["environment"] = {"HOME": str(tmp_path), "RAY_AUTH_TOKEN": "0" * 64}
    with run_pool(pool_settings) as pool:
        status, said = pool.ended()
    assert status == 2
    assert "token" in said.lower()


def test_an_address_where_nobody_answers_is_an_error_that_names_the_port(run_pool: Any) -> None:
    with run_pool({"ray_head_node_address": "127.0.0.1:9", "judges": JUDGES}) as pool:
        status, said = pool.ended()
    assert status == 2
    assert "nothing answers at 127.0.0.1:9" in said


@pytest.mark.slow
def test_a_killed_pool_takes_a_ray_of_its_own_along_and_the_next_one_clears_up(run_pool: Any) -> None:
    with run_pool({"num_cpus": 1, "judges": JUDGES}) as pool:
        pool.until(lambda: pool.ready("judge"))
        family = psutil.Process(pool.process.pid).children(recursive=True)
        [left] = Path("/tmp").glob(f"farm-ray-{pool.process.pid}-*")
        pool.process.kill()
        pool.process.wait()
        assert psutil.wait_procs(family, timeout=150)[1] == []  # agents tell the lost head of it for 60 s
    with run_pool({"num_cpus": 1, "judges": JUDGES}) as pool:
        pool.until(lambda: not left.exists())


@pytest.mark.slow
@pytest.mark.parametrize("wanted", [{"num_gpus": 4}, {"resources": {"extra_gpu": 1}}])
def test_what_no_node_can_hold_is_an_error_at_start(run_pool: Any, wanted: dict[str, Any]) -> None:
    with run_pool({"num_cpus": 1, "num_gpus": 2, "judges": {"large": {**STUB, "num_cpus": 0.1, **wanted}}}) as pool:
        status, said = pool.ended()
    assert status == 2
    assert "no node of the cluster has that: 1 CPU, 2 GPU" in said
