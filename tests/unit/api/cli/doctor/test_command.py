"""Checks of `farm doctor`."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from api.cli.doctor.checks import (
    Level,
    check_api,
    check_endpoint,
    check_environments,
    check_policies,
    check_port,
    memory_check,
    redis_checks,
)
from api.cli.doctor.judge_checks import check_replica, published_check
from gym.config import load_settings
from gym.judges.settings import EmbeddingJudge
from gym.testing.stand_ins.fake_farm import FakeFarm


def levels(info: dict[str, object]) -> dict[str, str]:
    return {check.name: check.level for check in redis_checks(info, "somewhere")}


def test_a_redis_that_keeps_everything_is_fine() -> None:
    info: dict[str, object] = {"redis_version": "7.2.4", "aof_enabled": 1}
    assert set(levels(info).values()) == {Level.OK}
    assert memory_check("noeviction").level == Level.OK


def test_a_redis_that_drops_keys_fails_and_one_that_may_not_be_asked_is_a_warning() -> None:
    assert memory_check("allkeys-lru").level == Level.FAIL
    assert memory_check(None).level == Level.WARN


@pytest.mark.parametrize(
    ("field", "value", "name", "level"),
    [
        ("redis_version", "6.0.16", "redis", Level.FAIL),
        ("aof_enabled", 0, "redis persistence", Level.WARN),
    ],
)
def test_a_redis_that_may_lose_something_is_named(field: str, value: object, name: str, level: Level) -> None:
    info: dict[str, object] = {"redis_version": "7.2.4", "aof_enabled": 1}
    assert levels(info | {field: value})[name] == level


def test_a_farm_that_is_ready_one_that_is_not_there_and_one_that_is_something_else() -> None:
    with FakeFarm() as farm:
        assert check_api(farm.url, None).level == Level.OK
    gone = check_api(farm.url, None)
    assert (gone.level, "farm up" in gone.advice) == (Level.WARN, True)


def test_a_port_is_free_the_farms_or_somebody_elses() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert check_port("api", "127.0.0.1", port, "/healthz").level == Level.OK
    with FakeFarm() as farm:
        port = int(farm.url.rpartition(":")[2])
        assert "by the farm" in check_port("api", "127.0.0.1", port, "/readyz").seen
        taken = check_port("api", "127.0.0.1", port, "/not/the/farm")
        assert (taken.level, str(port) in taken.seen) == (Level.FAIL, True)


def test_a_model_server_answers_by_its_health_or_its_models() -> None:
    with FakeFarm() as farm:
        assert check_endpoint("p", f"{farm.url}/v1", None).level == Level.FAIL
    assert check_endpoint("p", f"{farm.url}/v1", None).level == Level.FAIL


def test_the_endpoints_of_registered_policies_are_asked() -> None:
    with FakeFarm() as farm:
        farm.policies["p"] = {"base_urls": [f"{farm.url}/v1"], "model": "m"}
        (check,) = check_policies(load_settings(), farm.url, None)
    assert (check.name, check.level) == ("policy p", Level.FAIL)


def test_an_environment_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("import a_package_that_is_not_there\n")
    settings = load_settings(environments=[f"{broken}:Broken"])
    failed = [check for check in check_environments(settings, "http://127.0.0.1:1", None) if check.level == Level.FAIL]
    assert len(failed) == 1
    assert "a_package_that_is_not_there" in failed[0].seen


def test_the_command_fails_when_a_check_does_and_says_what_to_do(run: Any, farm: FakeFarm, tmp_path: Path) -> None:
    config = tmp_path / "farm.yaml"
    config.write_text(
        f"data_dir: {tmp_path / 'data'}\n"
        "api: {port: 0}\nproxy: {port: 0}\nflower: {port: 0}\n"
        "policies: {p: {base_urls: ['http://127.0.0.1:1/v1'], model: m}}\n"
    )
    done = run("doctor", "--config", config, "--json")
    found = {check["name"]: check for check in json.loads(done.out)}
    assert done.code == 1
    assert found["api"]["level"] == "ok"
    assert found["policy p"]["level"] == "fail"
    assert found["policy p"]["advice"]
    shown = run("doctor", "--config", config)
    assert "is the model server up" in shown.out


def test_settings_that_cannot_be_used_are_a_finding_not_a_crash(run: Any, tmp_path: Path) -> None:
    config = tmp_path / "farm.yaml"
    config.write_text("host: 0.0.0.0\n")
    done = run("doctor", "--config", config)
    assert done.code == 1
    assert "API keys" in done.out


def test_a_redis_that_does_not_answer_is_a_finding(run: Any, farm: FakeFarm, tmp_path: Path) -> None:
    config = tmp_path / "farm.yaml"
    config.write_text("redis: {url: 'redis://127.0.0.1:1/0'}\napi: {port: 0}\nproxy: {port: 0}\nflower: {port: 0}\n")
    found = {check["name"]: check for check in json.loads(run("doctor", "--config", config, "--json").out)}
    assert found["redis"]["level"] == "fail"
    assert "FARM_REDIS_URL" in found["redis"]["advice"]


@pytest.mark.parametrize(
    ("replicas", "level", "said"),
    [
        ([{"alive": True, "state": "ready", "kind": "embedding"}], "ok", "1 replicas are ready"),
        ([{"replica": "r", "alive": True, "state": "starting", "kind": "embedding"}], "fail", "r is starting"),
        ([{"alive": False, "state": "ready", "kind": "embedding"}], "fail", "no replica is ready"),
        ([{"alive": True, "state": "ready", "kind": "reward_model"}], "fail", "of kind reward_model"),
        ([], "fail", "none was published"),
    ],
)
def test_a_judge_is_well_when_a_replica_of_its_kind_is_ready(replicas: list[Any], level: str, said: str) -> None:
    check = published_check("similarity", EmbeddingJudge(), replicas)
    assert check.level == level
    assert said in check.seen


def test_a_judge_at_a_fixed_url_is_well_when_it_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    check = check_replica("equality", EmbeddingJudge(), f"http://user:secret@127.0.0.1:{port}/v1")
    assert check.level == "fail"
    assert "secret" not in check.seen
