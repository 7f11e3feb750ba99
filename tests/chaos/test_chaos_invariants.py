"""The checks of a chaos run: each says nothing of a good observation and names a bad one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gym.rollout import Ledger
from tests.chaos import invariants
from tests.chaos.aftermath import Stored, remains
from tests.chaos.observations import (
    Answered,
    Cancelled,
    Ended,
    LedgerSeen,
    ModelCall,
    Outage,
    QueueSeen,
    Taken,
    read_model_calls,
)

GOOD = Ledger(submitted=4, queued=1, running=1, judging=0, succeeded=2)
DONE = Ledger(submitted=4, succeeded=4)


def seen(ledger: Ledger, at: float = 0.0) -> LedgerSeen:
    return LedgerSeen(at=at, source="GET", batch_id="b", ledger=ledger)


def ended(sample: int, **changes: object) -> Ended:
    return replace(Ended(("b", "t", sample), f"b:0:{sample}", 1, "succeeded", 1.0, 3), **changes)  # type: ignore[arg-type]  # fields of Ended


def call(at: float, attempt: int = 1, rollout_id: str = "b:0:0") -> ModelCall:
    return ModelCall(at=at, rollout_id=rollout_id, attempt=attempt, turn=0)


FEED = [ended(0), ended(1), ended(2)]
EXPECTED = {one.task for one in FEED}
CANCEL = Cancelled(acknowledged_at=10.0, batch_id="b")


def test_good_observations_have_no_breach() -> None:
    assert invariants.unbalanced([seen(GOOD), seen(DONE)]) == []
    assert invariants.shrinking([seen(GOOD), seen(DONE)]) == []
    counts = {"queued": 2, "running": 1, "judging": 0, "dispatched": 2}
    assert invariants.impossible_queues([QueueSeen(at=0, source="GET", counts=counts)]) == []
    assert invariants.lost(EXPECTED, FEED) == []
    assert invariants.duplicated(FEED) == []
    assert invariants.unknown(EXPECTED, FEED) == []
    assert invariants.feeds_differ(FEED, FEED) == []
    assert invariants.unlike_ledger(FEED, {"b": Ledger(submitted=3, succeeded=3)}) == []
    assert invariants.unfinished({"b": DONE}) == []
    assert invariants.not_succeeded(FEED, []) == []
    assert invariants.unlike_workload(FEED) == []
    assert invariants.moving_after_cancel([seen(GOOD, 9.9), seen(DONE, 10.1)], [CANCEL]) == []
    assert invariants.called_after_cancel([call(9.0), call(11.0)], [CANCEL], []) == []
    assert invariants.attempts_at_once([call(1), call(5, 2), call(6.5), call(20, 2)], []) == []
    assert invariants.called_after_return([call(4), call(9, 2)], [ended(0, attempt=2)], [5.0]) == []
    assert invariants.unclosed_sessions(["open 7 a", "close 7 a", "open 8 b"], {8}) == []
    assert remains([Stored("b", 0, 0, 0, 0, 2, (1.0, 2.0))]) == []


@pytest.mark.parametrize(
    "ledger", [replace(GOOD, queued=0), replace(GOOD, queued=2), replace(GOOD, queued=-1, running=3)]
)
def test_a_ledger_that_does_not_add_up_is_a_breach(ledger: Ledger) -> None:
    assert len(invariants.unbalanced([seen(GOOD), seen(ledger)])) == 1


@pytest.mark.parametrize("later", [replace(GOOD, succeeded=1, queued=2), replace(GOOD, submitted=3, queued=0)])
def test_a_count_that_falls_is_a_breach(later: Ledger) -> None:
    assert len(invariants.shrinking([seen(GOOD), seen(later)])) == 1


@pytest.mark.parametrize(("dispatched", "running"), [(3, 0), (0, -1)])
def test_impossible_counts_are_a_breach(dispatched: int, running: int) -> None:
    counts = {"queued": 2, "running": running, "judging": 0, "dispatched": dispatched}
    assert invariants.impossible_queues([QueueSeen(at=0, source="GET", counts=counts)])


def test_an_alarm_of_an_imbalance_is_a_breach_and_one_of_a_lost_owner_is_not() -> None:
    assert invariants.imbalances({"ledger_imbalance": 1})
    assert invariants.imbalances({"no_owner": 1}) == []


def test_an_answer_that_nobody_expected_is_a_breach() -> None:
    assert invariants.unexpected_answers([Answered(at=0, request="GET /x", status=500, body="oh")])


def test_a_rollout_without_an_outcome_is_lost() -> None:
    assert invariants.lost(EXPECTED, FEED[1:]) == [("b", "t", 0)]


def test_a_rollout_with_two_outcomes_is_duplicated_whatever_its_attempts() -> None:
    assert invariants.duplicated([*FEED, ended(1, attempt=2)]) == [("b", "t", 1)]


def test_an_outcome_that_nobody_submitted_is_a_breach() -> None:
    assert invariants.unknown(EXPECTED, [*FEED, ended(9)])


@pytest.mark.parametrize(
    "kept",
    [
        FEED[1:],
        [*FEED, FEED[0]],
        [FEED[1], FEED[0], FEED[2]],
        [*FEED[:2], ended(2, attempt=2)],
        [*FEED, ended(3)],
    ],
    ids=["missed", "twice", "in another order", "another attempt", "gone from the feed"],
)
def test_a_kept_cursor_that_read_something_else_is_a_breach(kept: list[Ended]) -> None:
    assert invariants.feeds_differ(kept, FEED)


LEASES = [Taken(("b:0:0", "b:0:1"), acknowledged=False), Taken(("b:0:1",), acknowledged=True)]


def test_a_lease_that_was_not_acknowledged_comes_again_and_one_that_was_does_not() -> None:
    rest = Taken(("b:0:0", "b:0:2"), acknowledged=True)
    assert invariants.badly_leased([*LEASES, rest], FEED) == []
    assert invariants.badly_leased(LEASES, FEED)
    assert invariants.badly_leased([*LEASES, rest, LEASES[1]], FEED)
    assert invariants.badly_leased([*LEASES, rest], FEED[:2])


def test_a_ledger_that_counts_other_than_the_feed_is_a_breach() -> None:
    assert invariants.unlike_ledger(FEED, {"b": DONE})


def test_a_batch_that_has_not_ended_is_a_breach() -> None:
    assert invariants.unfinished({"b": GOOD})


def test_a_rollout_that_failed_is_a_breach_and_so_is_a_reward_that_is_wrong() -> None:
    assert invariants.not_succeeded([ended(0, outcome="failed", reward=None)], [])
    assert invariants.not_succeeded([ended(0, reward=0.0)], [])


def test_only_what_was_cancelled_may_be_cancelled() -> None:
    cancelled = [ended(0, outcome="cancelled", reward=None)]
    assert invariants.not_succeeded(cancelled, [])
    assert invariants.not_succeeded(cancelled, [replace(CANCEL, group_id="b:1")])
    assert invariants.not_succeeded(cancelled, [replace(CANCEL, group_id="b:0")]) == []


def test_a_rollout_of_seven_turns_is_not_of_this_workload() -> None:
    assert invariants.unlike_workload([ended(0, model_calls=7)])


def test_a_batch_that_moves_after_its_cancellation_was_acknowledged_is_a_breach() -> None:
    assert invariants.moving_after_cancel([seen(GOOD, 10.1)], [CANCEL])


def test_a_batch_may_move_until_its_cancellation_is_done() -> None:
    slow = replace(CANCEL, done_at=12.0)
    assert invariants.moving_after_cancel([seen(GOOD, 11.0)], [slow]) == []
    assert invariants.moving_after_cancel([seen(GOOD, 12.1)], [slow])


def test_counters_that_say_other_than_the_ledgers_are_a_breach() -> None:
    ledger = replace(GOOD, succeeded=3, failed=1, cancelled=0, expired=0)
    right = {"succeeded": 6, "failed": 2, "cancelled": 0, "expired": 0}
    assert invariants.unlike_counters(right, {"a": ledger, "b": ledger}) == []
    assert invariants.unlike_counters(right | {"succeeded": 5}, {"a": ledger, "b": ledger})
    assert invariants.unlike_counters(right | {"expired": 1}, {"a": ledger, "b": ledger})


def test_a_counter_that_falls_is_a_breach() -> None:
    assert invariants.falling([{"succeeded": 1}, {"succeeded": 1}, {"succeeded": 4}]) == []
    assert invariants.falling([{"succeeded": 4}, {"succeeded": 3}])


def test_a_model_call_long_after_a_cancellation_is_a_breach() -> None:
    assert invariants.called_after_cancel([call(12.5)], [CANCEL], [])
    assert invariants.called_after_cancel([call(12.5, rollout_id="other:0:0")], [CANCEL], []) == []


def test_a_time_without_redis_does_not_count_against_a_worker() -> None:
    assert invariants.called_after_cancel([call(12.5)], [CANCEL], [Outage(10.5, 12.0)]) == []
    assert invariants.called_after_cancel([call(12.5)], [CANCEL], [Outage(1.0, 10.2)])
    assert invariants.latest_call_after_cancel_s([call(12.5)], [CANCEL], [Outage(10.5, 12.0)]) == pytest.approx(1.0)


def test_an_attempt_that_goes_on_beside_the_next_one_is_a_breach() -> None:
    assert invariants.attempts_at_once([call(1), call(5, 2), call(8)], [])


def test_a_zombie_that_goes_on_with_what_was_taken_from_it_is_a_breach() -> None:
    assert invariants.called_after_return([call(7.5)], [ended(0, attempt=2)], [5.0])
    assert invariants.called_after_return([call(7.5)], [ended(0, attempt=2)], []) == []


def test_a_session_that_a_living_process_left_open_is_a_breach() -> None:
    assert invariants.unclosed_sessions(["open 7 a", "open 7 b", "close 7 a"], set())


@pytest.mark.parametrize("name", ["backlog", "later", "live", "staging", "done"])
def test_anything_left_in_redis_is_a_breach(name: str) -> None:
    stored = Stored("b", 0, 0, 0, 0, 2, (1.0, 2.0))
    changed: dict[str, Any] = {name: 3}
    assert remains([replace(stored, **changed)])


def test_long_lists_of_breaches_are_cut() -> None:
    bad = [seen(replace(GOOD, queued=0))] * 20
    breaches = invariants.unbalanced(bad)
    assert len(breaches) == invariants.SHOWN + 1
    assert breaches[-1] == "… and 15 more like that"


def test_model_calls_are_read_from_a_log_that_was_cut_by_a_kill() -> None:
    lines = [
        b'{"at": 1.5, "event": "begin", "number": 1, "x_request_id": "a-1:0:3-2-4"}',
        b'{"at": 1.6, "event": "end", "number": 1, "x_request_id": "a-1:0:3-2-4", "status": 200}',
        b'{"at": 2.5, "event": "begin", "number": 2, "x_request_id": "a-1:0:3-2-4-r1"}',
        b'{"at": 3.5, "event": "begin", "number": 3, "x_request_id": "msg_17"}',
        b'{"at": 4.5, "event": "begin", "numb',
    ]
    first, again = read_model_calls(lines)
    assert first == ModelCall(at=1.5, rollout_id="a-1:0:3", attempt=2, turn=4)
    assert again == replace(first, at=2.5)
