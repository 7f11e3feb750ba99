"""The pool's decisions without a cluster: placing, scaling, restarts, versions; and its client of Redis' protocol."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gym.config import load_settings
from gym.errors import SettingsError
from workers.judge_pool.orders import plan_of
from workers.judge_pool.placing import Load, lacking, restart_pause_s, wanted_replicas
from workers.judge_pool.plan import Deployment, PoolPlan
from workers.judge_pool.ray_cluster import RayUnusable, differences, probe

REDIS = {"url": "redis://:secret@127.0.0.1:6379/0"}


def judge(name: str = "one", **given: object) -> Deployment:
    return Deployment(judge=name, kind="llm", model="m", command=(), **{"num_cpus": 0.0, **given})  # type: ignore[arg-type]  # a test's shorthand


def test_halves_share_a_gpu_and_a_pair_needs_one_node() -> None:
    halves = judge(num_gpus=0.5, min_replicas=2, max_replicas=2)
    assert lacking([halves, judge("two", num_gpus=2)], [{"GPU": 1.0}, {"GPU": 2.0}]) == []
    assert "no node of the cluster has that" in lacking([judge(num_gpus=2)], [{"GPU": 1.0}, {"GPU": 1.0}])[0]


def test_judges_that_do_not_fit_together_are_named() -> None:
    [problem] = lacking([judge(num_gpus=1), judge("two", num_gpus=1)], [{"GPU": 1.0}])
    assert "one 1 times 1 GPU; two 1 times 1 GPU" in problem


@pytest.mark.parametrize(
    ("queued", "running", "calm_s", "expected"),
    [(0, 1, 0, 1), (65, 1, 0, 2), (10_000, 1, 0, 4), (0, 4, 5, 4), (0, 4, 60, 3), (100, 4, 60, 3), (0, 0, 0, 1)],
)
def test_replicas_follow_the_load_up_at_once_and_down_one_by_one(
    queued: int, running: int, calm_s: float, expected: int
) -> None:
    wanted = wanted_replicas(
        Load(queued=queued), now_running=running, least=1, most=4, target=64, calm_for_s=calm_s, down_after_s=30
    )
    assert wanted == expected


def test_restarts_wait_longer_each_time_and_end() -> None:
    deaths = [0.0, 1.0, 2.0, 3.0]
    assert restart_pause_s(deaths[:1], 3, window_s=60, most=3) == 0
    assert restart_pause_s(deaths[:3], 3, window_s=60, most=3) == 2
    assert restart_pause_s(deaths, 3, window_s=60, most=3) is None
    assert restart_pause_s(deaths, 100, window_s=60, most=3) == 0


def test_only_what_differs_is_named() -> None:
    ours = {"ray_version": "2.60.0", "python_version": "3.11.7"}
    assert differences({**ours, "ray_version": "2.56.1"}, ours) == [
        "Ray: the cluster has 2.56.1, this process has 2.60.0"
    ]
    assert differences({**ours, "python_version": "3.13.14"}, ours) == [
        "Python: the cluster has 3.13.14, this process has 3.11.7"
    ]
    assert differences({}, ours) == []


@pytest.mark.parametrize("address", ["auto", "ray://head:10001", "head", "127.0.0.1:9"])
def test_an_address_that_cannot_be_a_head_is_refused_before_ray_sees_it(address: str) -> None:
    with pytest.raises(RayUnusable):
        probe(address)


def test_a_plan_comes_back_from_its_file_which_only_its_owner_reads(tmp_path: Path) -> None:
    settings = load_settings(
        None, redis=REDIS, judges={"similar": {"kind": "embedding"}}, pool={"judges": {"similar": {"num_cpus": 1}}}
    )
    plan = plan_of(settings)
    plan.write(tmp_path / "plan.json")
    assert PoolPlan.read(tmp_path / "plan.json") == plan
    assert (tmp_path / "plan.json").stat().st_mode & 0o077 == 0
    assert "secret" not in repr(plan)
    assert json.loads((tmp_path / "plan.json").read_text())["keys"]["batch_judges"] == "farm:b:{*}:judges"


def test_vllm_gets_its_share_of_a_gpu_or_all_of_several() -> None:
    judges = {name: {"kind": "llm", "model": "m/n"} for name in ("half", "pair")}
    pool = {"judges": {"half": {"num_gpus": 0.5}, "pair": {"num_gpus": 2}}}
    half, pair = plan_of(load_settings(None, redis=REDIS, judges=judges, pool=pool)).deployments
    assert half.command[half.command.index("--gpu-memory-utilization") + 1] == "0.450"
    assert pair.command[pair.command.index("--tensor-parallel-size") + 1] == "2"


@pytest.mark.parametrize(
    ("pool", "named"),
    [
        ({"judges": {"judge": {}}}, "num_gpus is 0"),
        ({"judges": {"nobody": {}}}, "no such judge"),
        ({"host": "0.0.0.0", "judges": {"judge": {"num_gpus": 1}}}, "no api_key"),
    ],
)
def test_what_cannot_be_served_is_an_error_before_anything_starts(pool: dict[str, object], named: str) -> None:
    settings = load_settings(None, redis=REDIS, judges={"judge": {"kind": "llm", "model": "m"}}, pool=pool)
    with pytest.raises(SettingsError, match=named):
        plan_of(settings)
