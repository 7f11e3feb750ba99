"""Short runs of chaos, for every `make test`; `make chaos` has the long ones."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gym.state.alarms import AlarmKind
from tests.chaos.lost_writes import run_forgetful
from tests.chaos.processes import FarmOptions
from tests.chaos.redis_servers import Forgetful, Promotion, PutBack
from tests.chaos.report import Report
from tests.chaos.run import RunOptions, Trouble, run, strike_by_seed
from tests.chaos.scenarios import end_the_api, fill_disk, flush_broker, roll, spoil, stop_a_worker
from tests.chaos.schedule import Kind

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(400)]

SHORT_BAG: dict[Kind, int] = {
    "worker": 2, "judge-worker": 2, "redis": 2, "dispatcher": 1, "api": 1, "proxy": 1, "flower": 1, "fork-server": 1,
    "model": 1, "farm": 1,
}  # fmt: skip


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where a run leaves its logs; short, since Unix sockets and error messages like that."""
    with tempfile.TemporaryDirectory(prefix="chaos-test-") as name:
        yield Path(name)


def run_now(options: RunOptions, folder: Path, trouble: Trouble) -> Report:
    said: list[str] = []
    report = asyncio.run(run(options, folder, said.append, trouble))
    assert report.breaches == (), "\n".join([*said, *report.breaches])
    assert (report.lost, report.duplicated) == (0, 0)
    return report


def test_no_rollout_is_lost_or_doubled_when_every_kind_of_process_is_killed(folder: Path) -> None:
    options = RunOptions(
        seed=11,
        rollouts=360,
        seconds=240,
        bag=SHORT_BAG,
        most_s=2.0,
        most_strikes=sum(SHORT_BAG.values()),
        cancelled_groups=2,
        portion_pause_s=0.5,
        farm=FarmOptions(model_latency_s=0.8),
        settings={"FARM_WORKER_LEASE_TTL_S": "4"},
    )
    report = run_now(options, folder, strike_by_seed)
    assert report.kills.total() >= 5
    assert report.kills["judge-worker"] > 0
    assert report.kills["fork-server"] > 0
    assert report.most_attempts > 1


def test_trainers_that_wait_for_results_do_not_notice_that_the_api_is_replaced(folder: Path) -> None:
    options = RunOptions(seed=15, rollouts=160, seconds=240, portion_pause_s=0.0, farm=FarmOptions(model_latency_s=1.0))
    assert run_now(options, folder, end_the_api(2)).most_attempts == 1


@pytest.mark.slow
def test_everything_completes_when_the_broker_is_flushed(folder: Path) -> None:
    options = RunOptions(
        seed=12, rollouts=120, seconds=240, portion_pause_s=0.0, settings={"FARM_DISPATCHER_RESEND_AFTER_S": "1"}
    )
    assert run_now(options, folder, flush_broker(1)).most_attempts == 1


@pytest.mark.slow
def test_a_worker_that_stood_still_commits_nothing_and_stops_when_it_comes_back(folder: Path) -> None:
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
def test_a_rolling_restart_of_all_processes_uses_no_attempt_up(folder: Path) -> None:
    options = RunOptions(
        seed=14,
        rollouts=400,
        seconds=240,
        portion_pause_s=0.0,
        farm=FarmOptions(model_latency_s=1.0),
        settings={"FARM_WORKER_DRAIN_S": "0.5"},
    )
    assert run_now(options, folder, roll).most_attempts == 1


@pytest.mark.parametrize("forgetful", [PutBack, Promotion], ids=["put back", "replica promoted"])
def test_no_rollout_is_lost_stuck_or_given_twice_when_redis_loses_its_last_writes(
    folder: Path, forgetful: Forgetful
) -> None:
    options = RunOptions(
        seed=15, rollouts=200, least_turns=4, seconds=240, farm=FarmOptions(model_latency_s=0.4, concurrency=16)
    )
    said: list[str] = []
    report = asyncio.run(run_forgetful(options, folder, said.append, forgetful, loses_s=2.0))
    assert report.breaches == (), "\n".join([*said, *report.breaches])
    assert (report.lost, report.duplicated) == (0, 0)


def test_a_disk_that_is_full_while_results_are_written_loses_none(folder: Path) -> None:
    options = RunOptions(
        seed=16,
        rollouts=200,
        seconds=240,
        portion_pause_s=0.0,
        farm=FarmOptions(model_latency_s=0.3, concurrency=16, small_disk=True),
        settings={"FARM_RESULTS_INLINE_BYTES": "256"},
    )
    run_now(options, folder, fill_disk(8.0))


def test_everything_completes_beside_batches_and_messages_that_cannot_be_read(folder: Path) -> None:
    options = RunOptions(seed=15, rollouts=120, seconds=240, portion_pause_s=0.0)
    report = run_now(options, folder, spoil(2))
    assert report.most_attempts == 1
    assert report.alarms.get(AlarmKind.UNREADABLE_BATCH, 0) >= 2
