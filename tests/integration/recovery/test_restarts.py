"""Processes that are restarted in the middle of a batch: no attempt is used up, no completed call is made again."""

from __future__ import annotations

import signal
from collections import Counter
from typing import Any


def completed(calls: list[dict[str, Any]]) -> Counter[str]:
    return Counter(call["x_request_id"] for call in calls if call["status"] == 200 and not call["disconnected"])


def test_a_rolling_restart_of_all_workers_loses_no_attempt_and_makes_no_completed_call_again(
    broken: Any, until: Any
) -> None:
    broken.slow_model(0.5)
    question = {"responses_create_params": {"input": '[[repeat-calls 5 increment_counter {"count": 1}]]'}}
    example = broken.http.get("/v1/environments/stateful_counter").json()["example_row"]
    rows = [example | question] * 40
    batch_id = broken.submit(rows, environment="stateful_counter", limits={"max_attempts": 1})
    for worker in broken.processes("worker"):
        until(lambda: any(call["messages"] > 4 for call in broken.calls(batch_id)), "some calls are done")
        broken.slow_model(5.0)  # longer than the drain: running rollouts have to be handed back
        worker.send_signal(signal.SIGTERM)
        worker.wait(60)
        broken.slow_model(0.5)
        until(lambda: len([each for each in broken.workers() if each["alive"] and not each["draining"]]) == 2, "again")
    results = broken.results(batch_id)
    assert [result["error"] for result in results if result["error"]] == []
    assert Counter((result["outcome"], result["attempt"]) for result in results) == {("succeeded", 1): 40}
    done = completed(broken.calls(batch_id))
    assert set(done.values()) == {1}
    assert sum(done.values()) == sum(result["model_calls"] for result in results)
    log = "".join(path.read_text() for path in (broken.local.data_dir / "logs").glob("worker-*.log"))
    assert "action=drain_release" in log
