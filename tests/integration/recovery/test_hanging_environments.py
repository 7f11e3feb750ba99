"""Environments that never return: their rollouts end at their limits, and no other rollout is affected."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from api.local.local_farm import local_farm
from gym.client import connect_sync

LIMITS = {"rollout_timeout_s": 6}


def rows(hang: str, count: int) -> list[dict[str, Any]]:
    return [{"responses_create_params": {"input": "[[call work]]"}, "hang": hang}] * count


def outcomes(results: list[dict[str, Any]]) -> Counter[tuple[str, str]]:
    return Counter((result["outcome"], result["stop_reason"]) for result in results)


def hung(broken: Any) -> int:
    return sum(worker["hung"] for worker in broken.workers() if worker["alive"])


def test_20_of_200_rollouts_that_hang_for_ever_end_at_their_limit_and_the_others_complete(
    broken: Any, until: Any
) -> None:
    hanging = [row for where in ("setup", "tool", "verify", "tool") for row in rows(where, 5)]
    # a close that hangs costs no result
    mixed = [
        row for number in range(20) for row in [*rows("", 8), *rows("close" if number < 2 else "", 1), hanging[number]]
    ]
    batch_id = broken.submit(mixed, environment="stubborn", limits=LIMITS)
    results = broken.results(batch_id)
    assert outcomes(results) == {("succeeded", "completed"): 180, ("failed", "timeout"): 20}
    assert {result["attempt"] for result in results} == {1}
    until(lambda: hung(broken) == 22, "they count as hung")
    until(lambda: sum(worker["taken"] for worker in broken.workers()) == 0, "no slot is taken")
    assert "farm_environment_calls_hung 22.0" in broken.http.get("/metrics").text


@pytest.mark.slow
def test_a_rollout_that_swallows_its_cancellation_is_ended_without_it(broken: Any, until: Any) -> None:
    batch_id = broken.submit(rows("cancellation", 1) + rows("", 5), environment="deaf", limits=LIMITS)
    assert outcomes(broken.results(batch_id)) == {("succeeded", "completed"): 5, ("failed", "timeout"): 1}
    until(lambda: sum(worker["taken"] for worker in broken.workers()) == 0, "no slot is taken")


@pytest.mark.slow
def test_a_worker_in_which_too_much_hangs_drains_and_is_started_again(broken: Any, until: Any) -> None:
    before = {process.pid for process in broken.processes("worker")}
    batch_id = broken.submit(rows("tool", 80), environment="stubborn", limits=LIMITS | {"max_attempts": 1})
    others = broken.submit(200)
    assert outcomes(broken.results(batch_id)) == {("failed", "timeout"): 80}
    assert outcomes(broken.results(others)) == {("succeeded", "completed"): 200}
    until(lambda: before - {process.pid for process in broken.processes("worker")}, "one was replaced")
    until(lambda: hung(broken) < 24, "what hung went with it")
    log = "".join(path.read_text() for path in (broken.local.data_dir / "logs").glob("worker-*.log"))
    assert "action=exhausted" in log


@pytest.mark.slow
def test_a_worker_whose_event_loop_stands_still_ends_and_its_rollouts_run_elsewhere(tmp_path: Path) -> None:
    settings = {
        "FARM_ENVIRONMENTS": f'["{Path(__file__).with_name("stubborn.py")}:Deaf"]',
        "FARM_WORKER_HANG_S": "3",
        "FARM_WORKER_LEASE_TTL_S": "2",
        "FARM_DISPATCHER_RESEND_AFTER_S": "2",
    }
    options = ["--workers", "1", "--concurrency", "32", "--no-flower"]
    with local_farm(tmp_path, options=options, settings=settings) as farm, connect_sync(farm.url) as connected:
        hanging = connected.submit(rows("loop", 1), environment="deaf", limits={"max_attempts": 2})
        others = connected.submit(rows("", 12), environment="deaf", limits={"max_attempts": 6})
        (failed,) = [result.raw for result in hanging.results()]
        ended = [result.outcome for result in others.results()]
    assert (failed["outcome"], failed["error"]["kind"]) == ("failed", "worker_lost")
    assert ended == ["succeeded"] * 12
    log = (tmp_path / "logs" / "worker-1.log").read_text()
    assert "Timeout (0:00:03)!" in log
    assert "stubborn.py" in log  # where it stood
