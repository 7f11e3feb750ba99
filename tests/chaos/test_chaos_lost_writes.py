"""Short runs in which Redis loses its last writes; `make chaos` has the long ones."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.chaos.lost_writes import run_forgetful
from tests.chaos.processes import FarmOptions
from tests.chaos.redis_servers import Forgetful, Promotion, PutBack
from tests.chaos.run import RunOptions

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(400)]


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
