"""The farm as an actor of a trainer's Ray: the example of the documentation, on a cluster that another process runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from api.local.local_farm import farm_process, free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "configs" / "examples" / "train_in_ray.py"
WAIT_S = 120.0
CONFIG = ROOT / "configs" / "single_ray_cluster.yaml"


@pytest.fixture
def model_url(tmp_path: Path) -> Iterator[str]:
    """A mock model as policy."""
    port = free_port()
    log = tmp_path / "mock-model.log"
    model = farm_process("mock-model", ["--port", str(port)], {}, log)
    try:
        until(lambda: _answers(f"http://127.0.0.1:{port}/health"))
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        model.terminate()
        model.wait(60)


@pytest.fixture
def trainers_environment(somebodys_ray: Any) -> dict[str, str]:
    """Return the variables that a driver of a foreign Ray needs; the farm does not get them."""
    told = {"RAY_AUTH_MODE": "token", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "HOME": str(somebodys_ray.home)}
    return {**os.environ, "PYTHONPATH": str(ROOT), **told}


def until(found: Callable[[], Any]) -> Any:
    """Wait until the condition is true and return its value."""
    give_up_at = time.monotonic() + WAIT_S
    while not (seen := found()):
        assert time.monotonic() < give_up_at, "it did not come to pass in time"
        time.sleep(0.1)
    return seen


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code == 200
    except httpx.TransportError:
        return False


def test_results_are_streamed_to_a_trainer_and_the_farm_ends_with_its_block(
    somebodys_ray: Any, model_url: str, trainers_environment: dict[str, str]
) -> None:
    found = subprocess.run(
        [sys.executable, str(EXAMPLE), model_url, str(CONFIG), somebodys_ray.address],
        capture_output=True,
        text=True,
        timeout=300,
        env=trainers_environment,
    )
    *results, last = found.stdout.splitlines() or [""]
    assert last == "stopped", found.stderr[-6000:]
    rows = [json.loads(line) for line in results if line.startswith("[")]
    assert len({rollout_id for rollout_id, _, _ in rows}) == len(rows) == 12
    assert all(isinstance(reward, float) for _, reward, _ in rows)
    assert {version["min"] for _, _, version in rows} == {7}
    assert somebodys_ray.actors() == {"theirs": ["theirs"]}
    assert somebodys_ray.ask("ping") == "unharmed"


def test_a_trainer_that_leaves_early_cancels_and_one_that_is_killed_takes_its_farm_along(
    somebodys_ray: Any, model_url: str, trainers_environment: dict[str, str]
) -> None:
    script = Path(__file__).with_name("impatient_trainer.py")
    trainer = subprocess.Popen(
        [sys.executable, str(script), model_url, somebodys_ray.address],
        stdout=subprocess.PIPE,
        text=True,
        env=trainers_environment,
    )
    assert trainer.stdout is not None
    try:
        refusal, ledger, url = (json.loads(trainer.stdout.readline()) for _ in range(3))
        assert "there is no configuration file /nowhere.yaml" in refusal
        assert ledger["cancelled"] > 0
        assert ledger["succeeded"] + ledger["cancelled"] == ledger["submitted"]
        assert _answers(f"{url}/healthz")
        assert _of_a_farm()
    finally:
        trainer.kill()
        trainer.wait()
        trainer.stdout.close()
    until(lambda: not _answers(f"{url}/healthz"))
    until(lambda: somebodys_ray.actors() == {"theirs": ["theirs"]})
    until(lambda: not _of_a_farm())
    assert somebodys_ray.ask("ping") == "unharmed"


def _of_a_farm() -> list[int]:
    """Processes of farms that actors have started."""
    commands = {process.pid: process.info["cmdline"] or [""] for process in psutil.process_iter(["cmdline"])}
    return [
        pid for pid, words in commands.items() if words[0] == sys.executable and "/rollout-farm-" in " ".join(words)
    ]
