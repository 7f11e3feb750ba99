"""Short runs with a full disk, a flushed broker and data that cannot be read; `make chaos` has the long ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gym.state.alarms import AlarmKind
from tests.chaos.processes import FarmOptions
from tests.chaos.report import Report
from tests.chaos.run import RunOptions, Trouble
from tests.chaos.scenarios import fill_disk, flush_broker, spoil

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(400)]
RunNow = Callable[[RunOptions, Path, Trouble], Report]


@pytest.mark.slow
def test_everything_completes_when_the_broker_is_flushed(run_now: RunNow, folder: Path) -> None:
    options = RunOptions(
        seed=12, rollouts=120, seconds=240, portion_pause_s=0.0, settings={"FARM_DISPATCHER_RESEND_AFTER_S": "1"}
    )
    assert run_now(options, folder, flush_broker(1)).most_attempts == 1


def test_a_disk_that_is_full_while_results_are_written_loses_none(run_now: RunNow, folder: Path) -> None:
    options = RunOptions(
        seed=16,
        rollouts=200,
        seconds=240,
        portion_pause_s=0.0,
        farm=FarmOptions(model_latency_s=0.3, concurrency=16, small_disk=True),
        settings={"FARM_RESULTS_INLINE_BYTES": "256"},
    )
    run_now(options, folder, fill_disk(8.0))


def test_everything_completes_beside_batches_and_messages_that_cannot_be_read(run_now: RunNow, folder: Path) -> None:
    options = RunOptions(seed=15, rollouts=120, seconds=240, portion_pause_s=0.0)
    report = run_now(options, folder, spoil(2))
    assert report.most_attempts == 1
    assert report.alarms.get(AlarmKind.UNREADABLE_BATCH, 0) >= 2
