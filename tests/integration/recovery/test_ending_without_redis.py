"""Processes that get SIGTERM while Redis is away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest

from gym.config import STOP_SPARE_S
from gym.processes.liveness import check_liveness
from gym.processes.process_tree import end_with_parent

DRAIN_S = 3.0
FEW_S = 8.0  # for the rest of a shutdown, on a loaded machine


@contextmanager
def another(broken: Any, command: str) -> Iterator[subprocess.Popen[bytes]]:
    """One more process on the farm's Redis."""
    url = (broken.local.data_dir / "redis" / "url").read_text()
    environment = {
        **os.environ,
        **broken.settings,
        "FARM_REDIS_URL": url,
        "FARM_DATA_DIR": str(broken.local.data_dir),
        "FARM_WORKER_DRAIN_S": str(DRAIN_S),
    }
    with subprocess.Popen(
        [sys.executable, "-m", "api.cli.main", command],
        env=environment,
        stdout=subprocess.DEVNULL,
        preexec_fn=end_with_parent(signal.SIGKILL),
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def paused(process: psutil.Process) -> Iterator[None]:
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def ended_within(process: subprocess.Popen[bytes], most_s: float) -> float:
    """Return how long a process took to end after SIGTERM."""
    began = time.monotonic()
    process.terminate()
    process.wait(most_s)
    return time.monotonic() - began


def test_a_worker_with_rollouts_ends_within_its_drain_time_when_redis_is_away(broken: Any, until: Any) -> None:
    broken.slow_model(2.0)
    with another(broken, "worker") as worker:

        def held() -> int:
            mine = [each for each in broken.workers() if f"-{worker.pid}-" in each["worker"]]
            return sum(each["running"] for each in mine)

        until(lambda: any(f"-{worker.pid}-" in each["worker"] for each in broken.workers()), "it is in the books", 30)
        batch_id = broken.submit(300)
        until(held, "it has rollouts", 20)
        with paused(broken.processes("redis")[0]):
            assert ended_within(worker, DRAIN_S + STOP_SPARE_S + 5) < DRAIN_S + FEW_S
            assert worker.returncode == 0
    results = broken.results(batch_id)
    assert {result["outcome"] for result in results} == {"succeeded"}


@pytest.mark.parametrize("command", ["judge-worker", "dispatcher"])
def test_an_idle_process_ends_soon_when_redis_is_away(broken: Any, until: Any, command: str) -> None:
    with another(broken, command) as process:
        until(lambda: _answers(command, process), "it runs")
        time.sleep(1.0)  # it waits for work now
        with paused(broken.processes("redis")[0]):
            assert ended_within(process, DRAIN_S + STOP_SPARE_S + 5) < DRAIN_S + FEW_S + 4
            assert process.returncode == 0


def test_processes_stay_alive_while_redis_is_away(broken: Any, until: Any) -> None:
    until(lambda: _answers("worker", None), "workers answer")
    with paused(broken.processes("redis")[0]):
        time.sleep(float(broken.settings["FARM_REDIS_TIMEOUT_S"]) + 1)
        for role in ("worker", "dispatcher"):
            check_liveness(role, timeout_s=5)


def _answers(role: str, process: subprocess.Popen[bytes] | None) -> bool:
    """Return whether a socket of this process, or of any of the role, exists."""
    with open("/proc/net/unix") as table:  # noqa: PTH123
        names = [line.rpartition(" ")[2].strip() for line in table]
    suffix = f"/{process.pid}" if process is not None else ""
    return any(name.startswith(f"@rollout-farm/{role}/") and name.endswith(suffix) for name in names)
