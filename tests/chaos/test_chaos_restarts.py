"""Short runs in which processes are replaced or stand still; `make chaos` has the long ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.processes import FarmOptions
from tests.chaos.report import Report
from tests.chaos.run import RunOptions, Trouble
from tests.chaos.scenarios import end_the_api, roll, stop_a_worker

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(400)]
RunNow = Callable[[RunOptions, Path, Trouble], Report]


def test_trainers_that_wait_for_results_do_not_notice_that_the_api_is_replaced(run_now: RunNow, folder: Path) -> None:
    options = RunOptions(seed=15, rollouts=160, seconds=240, portion_pause_s=0.0, farm=FarmOptions(model_latency_s=1.0))
    assert run_now(options, folder, end_the_api(2)).most_attempts == 1


@pytest.mark.slow
def test_a_worker_that_stood_still_commits_nothing_and_stops_when_it_comes_back(run_now: RunNow, folder: Path) -> None:
    options = RunOptions(
        seed=13,
        rollouts=120,
        least_turns=6,
        seconds=240,
        portion_pause_s=0.0,
        farm=FarmOptions(model_latency_s=1.5, concurrency=16),
        settings={"FARM_WORKER_LEASE_TTL_S": "2"},
    )
    assert run_now(options, folder, stop_a_worker(5.0)).most_attempts == 2


@pytest.mark.slow
def test_a_rolling_restart_of_all_processes_uses_no_attempt_up(run_now: RunNow, folder: Path) -> None:
    options = RunOptions(
        seed=14,
        rollouts=400,
        seconds=240,
        portion_pause_s=0.0,
        farm=FarmOptions(model_latency_s=1.0),
        settings={"FARM_WORKER_DRAIN_S": "0.5"},
    )
    assert run_now(options, folder, roll).most_attempts == 1
