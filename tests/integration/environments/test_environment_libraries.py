"""Environments that are not built in, on a whole farm: by adapters, and in a package that the farm's command wrote."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from api.local.local_farm import LocalFarm, local_farm
from gym.client import connect_sync
from gym.errors import Invalid, NotFound

CONFIG = """
environments:
  lake: {adapter: gymnasium, id: FrozenLake-v1, kwargs: {is_slippery: false}}
  lake_by_calls: {adapter: gymnasium, id: FrozenLake-v1, kwargs: {is_slippery: false}, act: tool}
  broken: {adapter: gymnasium, id: NoSuchLake-v1}
"""
MOVES = ["down", "down", "right", "right", "down", "right"]


def python(*arguments: str, **environment: str) -> str:
    """Run this Python and return its output."""
    done = subprocess.run(
        [sys.executable, *arguments], env={**os.environ, **environment}, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package as `farm environments init` writes it, installed into a folder of its own."""
    folder = tmp_path_factory.mktemp("authoring")
    python("-m", "api.cli.main", "environments", "init", "dice-game", "--into", str(folder))
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--disable-pip-version-check"]
    python("-m", "pip", "install", *options, "--target", str(folder / "site"), str(folder / "dice-game"))
    return folder


@pytest.fixture(scope="module")
def libraries(package: Path) -> Iterator[LocalFarm]:
    with tempfile.TemporaryDirectory(prefix="farm-libraries-") as folder:
        config = Path(folder) / "farm.yaml"
        config.write_text(CONFIG)
        paths = os.pathsep.join([str(package / "site"), os.environ.get("PYTHONPATH", "")])
        options = ["--config", str(config), "--workers", "1", "--no-flower"]
        with local_farm(Path(folder) / "data", options=options, settings={"PYTHONPATH": paths}) as farm:
            yield farm


def test_the_tests_of_a_new_package_are_green(package: Path) -> None:
    out = python("-m", "pytest", "-q", "-p", "no:cacheprovider", str(package / "dice-game"))
    assert "passed" in out
    assert "failed" not in out


def test_an_installed_package_runs_on_a_farm(libraries: LocalFarm) -> None:
    with connect_sync(libraries.url) as farm:
        shown = farm.environment("dice-game")
        row = {**(shown.example_row or {}), "task_id": "t"}
        script = "[[call roll]]\n---\n[[call roll]]\n---\n[[say <answer>done</answer>]]"
        row["responses_create_params"] = {"input": [{"role": "user", "content": script}]}
        results = list(farm.submit([row], environment="dice-game", num_samples=2).results())

    assert [(result.outcome, result.error) for result in results] == [("succeeded", None)] * 2
    assert [result.tool_calls for result in results] == [2, 2]


def test_a_stepped_environment_runs_in_a_batch_and_its_steps_are_in_the_results(libraries: LocalFarm) -> None:
    script = "\n---\n".join(f"[[say <action>{move}</action>]]" for move in MOVES)
    row = {"responses_create_params": {"input": [{"role": "system", "content": script}]}, "seed": 1}
    with connect_sync(libraries.url) as farm:
        results = list(farm.submit([row] * 2, environment="lake", num_samples=2).results(view="training"))

    for result in results:
        assert (result.outcome, result.stop_reason, result.reward) == ("succeeded", "completed", 1.0), result.error
        assert [step["reward"] for step in result.steps] == [0.0] * 5 + [1.0]
        assert [step["action"] for step in result.steps] == [1, 1, 2, 2, 1, 2]
        assert len(result.segments) == 1
        assert 0 < sum(result.segments[0].loss_mask) < len(result.segments[0].token_ids)


def test_a_stepped_environment_is_played_by_calls(libraries: LocalFarm) -> None:
    script = "\n---\n".join(f'[[call act {{"action": "{move}"}}]]' for move in MOVES)
    row = {"responses_create_params": {"input": [{"role": "system", "content": script}]}, "seed": 1}
    with connect_sync(libraries.url) as farm:
        [result] = farm.submit([row], environment="lake_by_calls").results(view="full")
    assert (result.stop_reason, result.reward, len(result.steps)) == ("completed", 1.0, 6)


def test_an_environment_that_cannot_be_made_is_listed_with_its_reason_and_takes_no_rows(libraries: LocalFarm) -> None:
    with connect_sync(libraries.url) as farm:
        assert "NoSuchLake" in str(farm.environment("broken").error)
        with pytest.raises(Invalid, match="NoSuchLake"):
            farm.submit([{"responses_create_params": {"input": "hi"}}], environment="broken")


def test_a_trainer_plays_a_session_with_the_client(libraries: LocalFarm) -> None:
    with connect_sync(libraries.url) as farm:
        with farm.open_session("lake", {"seed": 1}, seed=3) as session:
            with pytest.raises(Invalid, match="an action is one of left, down, right, up"):
                session.step("fly")
            steps = [session.step(move) for move in MOVES]
            reward = session.verify()
        with pytest.raises(NotFound):
            session.step("left")
        with farm.open_session("stateful_counter", {"initial_count": 3, "expected_count": 5}) as counter:
            counter.call_tool("increment_counter", {"count": 2})
            told = counter.call_tool("get_counter_value")
            counted = counter.verify("5")

    assert session.opened.observation["observation"] == 0
    assert [step.done for step in steps] == [False] * 5 + [True]
    assert (reward.value, reward.components) == (1.0, {"steps": 6.0})
    assert (told.failed, counted.value) == (False, 1.0)
