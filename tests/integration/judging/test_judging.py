"""Judging as a user has it: real Redis, real Celery workers and judge workers, a model as judge over HTTP."""

from __future__ import annotations

import signal
from collections import Counter
from typing import Any

import psutil

EQUAL, DIFFERENT = "[[say Verdict: EQUAL]]", "[[say Verdict: DIFFERENT]]"


def judge_worker(judged: Any) -> psutil.Process:
    """The judge worker's process."""
    for process in psutil.Process(judged.farm.process.pid).children(recursive=True):
        if "judge-worker" in process.cmdline():
            return process
    raise AssertionError("there is no judge worker")


def test_the_judge_decides_what_plain_comparison_cannot(judged_farm: Any) -> None:
    batch_id = judged_farm.submit(
        [
            judged_farm.row("It is so", EQUAL),
            judged_farm.row("It is not", DIFFERENT),
            judged_farm.row("144.0", "144"),
            judged_farm.row("7", "8"),
        ],
    )
    yes, no, same, other = judged_farm.results(batch_id)
    assert [yes["reward"], no["reward"], same["reward"], other["reward"]] == [1.0, 0.0, 1.0, 0.0]
    assert [result["judge"] for result in (yes, no, same, other)] == ["equality", "equality", None, None]
    [verdict] = yes["verdicts"]
    assert (verdict["judge"], verdict["score"], verdict["round"]) == ("equality", 1.0, 1)
    assert verdict["version"]
    assert yes["timing"]["judge_s"] > 0
    assert same["verdicts"] == []


def test_a_slow_judge_holds_up_no_rollout(judged_farm: Any) -> None:
    judged_farm.judge.server.behave(latency_s=600.0)
    try:
        waiting = judged_farm.submit([judged_farm.row(f"answer {number}", EQUAL) for number in range(64)])
        # eight times as many as there are slots, and not one of them keeps its slot
        judged_farm.until(lambda: judged_farm.ledger(waiting)["judging"] == 64)
        quick = judged_farm.submit([judged_farm.row("7", "7") for _ in range(32)])
        assert Counter(result["reward"] for result in judged_farm.results(quick)) == {1.0: 32}
        assert judged_farm.ledger(waiting)["judging"] == 64
    finally:
        judged_farm.judge.server.behave(latency_s=0.0)
    assert Counter(result["reward"] for result in judged_farm.results(waiting)) == {1.0: 64}


def test_a_judge_that_is_away_is_waited_for(judged_farm: Any) -> None:
    judged_farm.judge.leave()
    try:
        batch_id = judged_farm.submit([judged_farm.row(f"answer {number}", EQUAL) for number in range(8)])
        judged_farm.until(lambda: judged_farm.ledger(batch_id)["judging"] == 8)
    finally:
        judged_farm.judge.come_back()
    found = judged_farm.results(batch_id)
    assert Counter((result["outcome"], result["reward"], result["attempt"]) for result in found) == {
        ("succeeded", 1.0, 1): 8
    }


def test_what_no_judge_says_is_a_judge_error_and_never_a_score(judged_farm: Any) -> None:
    rows = [judged_farm.row("one", "[[say I cannot tell.]]"), judged_farm.row("two", EQUAL)]
    unreadable, scored = judged_farm.results(judged_farm.submit(rows))
    assert (unreadable["outcome"], unreadable["reward"]) == ("failed", None)
    assert (unreadable["error"]["kind"], unreadable["error"]["retryable"]) == ("judge_error", False)
    assert scored["reward"] == 1.0


def test_a_batch_is_cancelled_while_it_is_judged(judged_farm: Any) -> None:
    judged_farm.judge.server.behave(latency_s=600.0)
    try:
        batch_id = judged_farm.submit([judged_farm.row(f"answer {number}", EQUAL) for number in range(8)])
        judged_farm.until(lambda: judged_farm.ledger(batch_id)["judging"] == 8)
        assert judged_farm.http.delete(f"/v1/batches/{batch_id}").json()["cancelled"] == 8
        assert judged_farm.ledger(batch_id)["cancelled"] == 8
    finally:
        judged_farm.judge.server.behave(latency_s=0.0)


def test_after_kill_9_of_the_judge_worker_each_rollout_is_scored_once(judged_farm: Any) -> None:
    rows = [judged_farm.row(f"answer {number}", EQUAL if number % 3 else DIFFERENT) for number in range(96)]
    judged_farm.judge.server.behave(latency_s=600.0)
    try:
        batch_id = judged_farm.submit(rows)
        # a job that it has received and not begun would only be sent again after dispatcher.resend_after_s
        judged_farm.until(
            lambda: any(w.get("judging") == 96 for w in judged_farm.http.get("/v1/workers").json()["items"])
        )
        assert judged_farm.judge.server.stats["in_flight"] >= 32
        judge_worker(judged_farm).send_signal(signal.SIGKILL)
    finally:
        judged_farm.judge.server.behave(latency_s=0.0)
    found = judged_farm.results(batch_id)
    assert len({result["rollout_id"] for result in found}) == len(found) == 96
    assert Counter(result["reward"] for result in found) == {1.0: 64, 0.0: 32}
    assert {result["attempt"] for result in found} == {1}
    assert {len(result["verdicts"]) for result in found} == {1}
