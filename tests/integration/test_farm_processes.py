"""The farm as `farm up` runs it: real api, dispatcher, workers, Flower, and a mock model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import orjson
import psutil

from api.cli.demo import demo_tasks
from api.local.local_farm import LocalFarm, local_farm
from gym.client import connect_sync


def until(condition: Callable[[], Any], what: str) -> Any:
    give_up_at = time.monotonic() + 30
    while not (answer := condition()):
        assert time.monotonic() < give_up_at, f"not within 30 s: {what}"
        time.sleep(0.05)
    return answer


def weather_rows(count: int) -> list[dict[str, Any]]:
    return [row for row in demo_tasks(count, seed=7) if row["environment"] == "weather"]


def test_every_built_in_environment_runs_against_the_mock_model(farm: LocalFarm) -> None:
    tasks = demo_tasks(3, seed=1)
    with connect_sync(farm.url) as connected:
        batch = connected.submit(tasks, num_samples=2)
        results = list(batch.results())
        ledger = batch.status().ledger
    assert {result.environment for result in results} == {"weather", "stateful_counter", "sql", "reasoning_gym"}
    assert [result.error for result in results if result.error is not None] == []
    assert ledger.succeeded == ledger.submitted == len({result.rollout_id for result in results}) == 2 * len(tasks)


def test_flower_tells_of_a_finished_job_with_its_environment_and_rollouts(farm: LocalFarm) -> None:
    with connect_sync(farm.url) as connected:
        batch = connected.submit(weather_rows(1), num_samples=1)
        rollout_id = next(iter(batch.results())).rollout_id

    def finished() -> list[dict[str, Any]]:
        answer = httpx.get(f"{farm.flower_url}/api/tasks", params={"limit": 1000}, timeout=10)
        jobs = answer.json().values() if answer.status_code == 200 else []
        return [job for job in jobs if job["state"] == "SUCCESS" and batch.batch_id in job["kwargs"]]

    (job,) = until(finished, "the job in Flower")
    assert job["name"] == "farm.run_rollouts"
    assert "weather" in job["kwargs"]
    assert rollout_id in job["kwargs"]


def test_nothing_secret_is_in_the_command_lines(farm: LocalFarm) -> None:
    password = (farm.data_dir / "redis" / "password").read_text()
    family = psutil.Process(farm.process.pid).children(recursive=True)
    assert len(family) >= 6
    assert not [process for process in family if password in " ".join(process.cmdline())]


def test_a_farm_that_is_stopped_and_started_again_goes_on(tmp_path: Path) -> None:
    without_workers = local_farm(tmp_path, options=["--no-flower", "--workers", "0"])
    with without_workers as farm, connect_sync(farm.url) as connected:
        batch = connected.submit(weather_rows(2), num_samples=2)
        assert batch.status().ledger.queued == 4
    assert farm.process.returncode == 0
    with_one = local_farm(tmp_path, options=["--no-flower", "--workers", "1"])
    with with_one as farm, connect_sync(farm.url) as connected:
        results = list(connected.batch(batch.batch_id).results())
    assert [result.outcome for result in results] == ["succeeded"] * 4
    assert farm.process.returncode == 0


def test_a_farm_that_is_killed_leaves_no_process(tmp_path: Path) -> None:
    with local_farm(tmp_path, options=["--no-flower", "--workers", "1"]) as farm:
        family = psutil.Process(farm.process.pid).children(recursive=True)
        os.kill(farm.process.pid, signal.SIGKILL)
        _, left = psutil.wait_procs(family, timeout=20)
    assert left == []


def test_a_farm_whose_fork_server_died_still_restarts_what_dies(tmp_path: Path) -> None:
    def answers(url: str) -> bool:
        try:
            return httpx.get(f"{url}/readyz").status_code == 200
        except httpx.TransportError:
            return False

    with local_farm(tmp_path, options=["--no-flower", "--workers", "1"]) as farm:
        children = psutil.Process(farm.process.pid).children()
        [forks] = [child for child in children if "api.cli.fork_server" in child.cmdline()]
        roles = {child.cmdline()[-1]: child for child in children}
        assert {"api", "proxy", "dispatcher", "worker"} <= roles.keys()
        for killed in (forks, roles["api"]):
            killed.kill()
        until(lambda: not roles["api"].is_running(), "the api is gone")
        until(lambda: answers(farm.url), "the api is back")
        assert roles["worker"].is_running()


def test_a_farm_that_reloads_runs_the_code_of_an_environment_as_it_is_now(tmp_path: Path) -> None:
    source = tmp_path / "greeting.py"
    text = (Path(__file__).parents[2] / "configs" / "examples" / "coin.py").read_text()
    source.write_text(text)
    config = tmp_path / "farm.yaml"
    config.write_text(f"environments: ['{source}:Coin']\n")

    def description(url: str) -> str:
        try:
            return str(httpx.get(f"{url}/v1/environments/coin").json().get("description"))
        except (httpx.TransportError, ValueError):
            return ""

    options = ["--no-flower", "--workers", "1", "--reload", "--config", str(config)]
    with local_farm(tmp_path / "data", options=options) as farm:
        until(lambda: description(farm.url).startswith("Throw a coin"), "the environment is there")
        source.write_text(text.replace("Throw a coin", "Toss a coin"))
        until(lambda: description(farm.url).startswith("Toss a coin"), "the new code runs")


def test_the_demo_leaves_its_results_and_no_process(tmp_path: Path) -> None:
    answer = subprocess.run(
        [
            sys.executable,
            "-m",
            "api.cli.main",
            "demo",
            "--rows",
            "2",
            "--num-samples",
            "2",
            "--data-dir",
            str(tmp_path),
        ],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=110,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    results = [orjson.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert len(results) == 16
    assert "reasoning_gym" in answer.stdout
    assert str(tmp_path) in answer.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["results.jsonl"]
    left = [
        process
        for process in psutil.process_iter(["cmdline"])
        if str(tmp_path) in " ".join(process.info["cmdline"] or [])
    ]
    assert left == []
