"""Findings of the ledger audit, and the time until they are believed."""

from __future__ import annotations

from typing import Any

import pytest

from gym.rollout import Ledger
from gym.state.alarms import AlarmKind
from gym.state.repair.audit import Holdings, WorkerShare
from workers.dispatch.upkeep.findings import UNSEEN_S, BatchContext, BatchProgress, OpenFindings, Remedy, examine

AROUND = BatchContext(
    workers={"w1"}, free_slots=4, rollout_timeout_s=600.0, lease_ttl_s=8.0, no_progress_s=120.0
)  # fmt: skip
NOW_MS = 10_000_000


def held(**changes: Any) -> Holdings:
    """Ten rollouts: four queued (one of them a retry), two dispatched, one running, one judged, two ended."""
    values: dict[str, Any] = {
        "batch_id": "b",
        "now": NOW_MS,
        "ledger": Ledger(submitted=10, queued=6, running=1, judging=1, succeeded=1, failed=1),
        "dispatched": 2,
        "fence": 4,
        "stopping": False,
        "retries": 1,
        "retries_due": 1,
        "backlog_entries": 1,
        "backlog_rollouts": 3,
        "live": 4,
        "done": 2,
        "states": (2, 1, 1),
        "owners": (WorkerShare(worker="w1", rollouts=1, member="0:0", since=NOW_MS - 1000),),
        "cursor": "0",
    }
    return Holdings(**(values | changes))


def kinds(holdings: Holdings) -> list[AlarmKind]:
    return [finding.alarm.kind for finding in examine(holdings, AROUND)]


def test_a_batch_that_adds_up_is_not_suspected() -> None:
    assert kinds(held()) == []


def test_cancelled_rollouts_may_still_stand_in_line() -> None:
    assert kinds(held(backlog_rollouts=50, retries=9)) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"ledger": Ledger(submitted=11, queued=6, running=1, judging=1, succeeded=1, failed=1)},
        {"states": (1, 2, 1)},
        {"states": None, "live": 5},
        {"done": 3},
    ],
)
def test_counters_that_contradict_each_other_or_what_is_there_are_an_imbalance(changes: dict[str, Any]) -> None:
    assert kinds(held(**changes)) == [AlarmKind.LEDGER_IMBALANCE]


def test_a_live_rollout_that_vanished_is_looked_for() -> None:
    (finding,) = examine(held(states=(2, 0, 1), live=3, owners=()), AROUND)
    assert finding.remedy is Remedy.ADOPT


def test_queued_rollouts_in_no_line_have_no_owner() -> None:
    (finding,) = examine(held(backlog_rollouts=2), AROUND)
    assert (finding.alarm.kind, finding.remedy) == (AlarmKind.NO_OWNER, Remedy.ADOPT)
    assert "4 rollouts are queued and 3 are in line" in finding.alarm.message


def test_a_backlog_too_long_to_be_counted_accuses_nobody() -> None:
    assert kinds(held(backlog_rollouts=None, retries=0)) == []


def test_rollouts_of_a_worker_without_a_lease_are_named_and_taken_back_after_a_lease_time() -> None:
    (finding,) = examine(held(owners=(WorkerShare(worker="w9", rollouts=3, member="4:1", since=NOW_MS),)), AROUND)
    assert (finding.alarm.kind, finding.alarm.worker, finding.remedy) == (AlarmKind.NO_OWNER, "w9", Remedy.RECOVER)
    assert finding.alarm.rollouts == ("b:4:1",)
    assert finding.lasts_s > AROUND.lease_ttl_s


def test_a_rollout_beyond_its_limit_is_named_with_its_worker() -> None:
    late = WorkerShare(worker="w1", rollouts=1, member="0:3", since=NOW_MS - 721_000)
    (finding,) = examine(held(owners=(late,)), AROUND)
    assert (finding.alarm.kind, finding.alarm.worker, finding.alarm.rollouts) == (
        AlarmKind.NO_PROGRESS,
        "w1",
        ("b:0:3",),
    )


def test_no_progress_is_found_when_work_and_slots_exist_and_nothing_is_claimed_or_ends() -> None:
    progress = BatchProgress()
    seen = [progress.look(held(), AROUND, now=float(now)) for now in range(0, 140, 10)]
    assert [len(found) for found in seen] == [0] * 12 + [1] * 2
    assert progress.look(held(fence=5), AROUND, now=150.0) == []


@pytest.mark.parametrize(
    ("changes", "around"),
    [
        ({"backlog_entries": 0, "retries_due": 0, "dispatched": 0}, AROUND),
        ({"stopping": True}, AROUND),
        ({}, BatchContext(workers={"w1"}, free_slots=0, rollout_timeout_s=600, lease_ttl_s=8, no_progress_s=120)),
    ],
)
def test_waiting_for_a_retry_a_cancellation_or_a_slot_is_not_a_lack_of_progress(
    changes: dict[str, Any], around: BatchContext
) -> None:
    progress = BatchProgress()
    assert not any(progress.look(held(**changes), around, now=float(now)) for now in range(0, 300, 10))


def test_time_in_which_nobody_looked_is_not_a_lack_of_progress() -> None:
    progress = BatchProgress()
    assert progress.look(held(), AROUND, now=0.0) == []
    assert progress.look(held(), AROUND, now=1000.0) == []


def test_a_finding_is_believed_the_second_time_and_not_before_it_has_lasted() -> None:
    suspicions = OpenFindings()
    (lost,) = examine(held(backlog_rollouts=0), AROUND)
    (leaseless,) = examine(held(owners=(WorkerShare(worker="w9", rollouts=1, member="0:0", since=NOW_MS),)), AROUND)
    looks = [suspicions.confirm("b", [lost, leaseless], now=now, complete=True) for now in (0.0, 2.0, 11.0)]
    assert looks == [[], [lost], [lost, leaseless]]


def test_a_finding_that_was_gone_in_between_begins_anew() -> None:
    suspicions = OpenFindings()
    (lost,) = examine(held(backlog_rollouts=0), AROUND)
    for findings in ([lost], [], [lost]):
        assert suspicions.confirm("b", findings, now=0.0, complete=True) == []


def test_a_suspicion_outlasts_a_look_at_another_part_of_the_batch_but_not_for_ever() -> None:
    suspicions = OpenFindings()
    (lost,) = examine(held(backlog_rollouts=0), AROUND)
    suspicions.confirm("b", [lost], now=0.0, complete=False)
    suspicions.confirm("b", [], now=2.0, complete=False)
    assert suspicions.confirm("b", [lost], now=4.0, complete=False) == [lost]
    suspicions.confirm("b", [], now=5.0 + UNSEEN_S, complete=False)
    assert suspicions.standing("b") == set()
