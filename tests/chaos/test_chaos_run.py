"""Short runs in which every kind of process is killed; `make chaos` has the long ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.processes import FarmOptions
from tests.chaos.report import Report
from tests.chaos.run import RunOptions, Trouble, strike_by_seed
from tests.chaos.schedule import Kind

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(400)]
RunNow = Callable[[RunOptions, Path, Trouble], Report]

SHORT_BAG: dict[Kind, int] = {
    "worker": 2, "judge-worker": 2, "redis": 2, "dispatcher": 1, "api": 1, "proxy": 1, "flower": 1, "fork-server": 1,
    "model": 1, "farm": 1,
}  # fmt: skip


def test_no_rollout_is_lost_or_doubled_when_every_kind_of_process_is_killed(run_now: RunNow, folder: Path) -> None:
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
