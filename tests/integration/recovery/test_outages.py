"""Redis, the broker, workers and dispatchers that stop, die and come back in the middle of a batch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import psutil
import pytest
from redis import Redis

from gym.processes.process_tree import end_with_parent
from workers.process.app import queue_lists, queue_name

CLOCK_THAT_JUMPS = """
import runpy, sys, time
true_time, true_ns, began = time.time, time.time_ns, time.monotonic()
def ahead():
    '''A day ahead at first; from the fifth second on a day behind.'''
    return 86400 if time.monotonic() - began < 5 else -86400
time.time = lambda: true_time() + ahead()
time.time_ns = lambda: true_ns() + ahead() * 10**9
sys.argv = ["farm", *sys.argv[1:]]
runpy.run_module("api.cli.main", run_name="__main__")
"""


@contextmanager
def another(broken: Any, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """One more process on the farm's Redis."""
    url = (broken.local.data_dir / "redis" / "url").read_text()
    environment = {**os.environ, **broken.settings, "FARM_REDIS_URL": url, "FARM_DATA_DIR": str(broken.local.data_dir)}
    with subprocess.Popen(
        [sys.executable, *command],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=end_with_parent(signal.SIGKILL),
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def stopped(process: psutil.Process) -> Iterator[None]:
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def all_succeeded(results: list[dict[str, Any]], *, attempts: int) -> None:
    """Under load a process may be slow to renew its lease, so a few attempts more are no failure."""
    assert Counter(result["outcome"] for result in results) == {"succeeded": len(results)}
    assert max(result["attempt"] for result in results) <= attempts


def test_a_flushed_broker_loses_nothing_since_the_backlog_is_not_there(broken: Any, until: Any) -> None:
    broken.slow_model(0.3)
    batches = [broken.submit(300)]
    url = (broken.local.data_dir / "redis" / "url").read_text()

    lists = queue_lists(queue_name("farm"), "farm.")

    def succeeded() -> int:
        return sum(broken.ledger(batch_id)["succeeded"] for batch_id in batches)

    with Redis.from_url(url.removesuffix("/0") + "/1") as broker:
        for _ in range(3):
            done = succeeded()
            until(lambda done=done: succeeded() > done, "it goes on")
            with ExitStack() as stack:
                for worker in broken.processes("worker"):
                    stack.enter_context(stopped(worker))
                batches.append(broken.submit(100))  # no worker takes it from the broker now
                until(lambda: sum(map(broker.llen, lists)), "jobs wait in the broker")
                broker.flushdb()
    for batch_id in batches:
        all_succeeded(broken.results(batch_id), attempts=3)


def test_a_worker_that_was_stopped_past_its_lease_commits_nothing_and_ends_its_rollouts(
    broken: Any, until: Any
) -> None:
    broken.slow_model(0.5)
    batch_id = broken.submit(96)
    until(lambda: broken.ledger(batch_id)["running"] > 64, "both workers are at work")
    zombie = broken.processes("worker")[0]
    (name,) = [each["worker"] for each in broken.workers() if f"-{zombie.pid}-" in each["worker"]]
    with stopped(zombie):
        until(lambda: name not in [each["worker"] for each in broken.workers()], "it is struck off")
        results = broken.results(batch_id)
    all_succeeded(results, attempts=3)
    assert max(result["attempt"] for result in results) > 1
    until(lambda: [each for each in broken.workers() if each["worker"] == name and not each["running"]], "it is idle")
    assert zombie.is_running()
    again = broken.http.get(f"/v1/batches/{batch_id}/results", params={"limit": 500}).json()["items"]
    assert [(item["rollout_id"], item["attempt"]) for item in again] == [
        (item["rollout_id"], item["attempt"]) for item in results
    ]


def paused_redis(broken: Any, until: Any, seconds: float) -> None:
    """Acknowledged work is kept, the api says 503 meanwhile, and no process is taken for dead."""
    broken.slow_model(0.5)
    batch_id = broken.submit(300)
    until(lambda: broken.ledger(batch_id)["succeeded"] > 0, "it goes on")
    acknowledged = broken.ledger(batch_id)["succeeded"]
    (redis,) = broken.processes("redis")
    with stopped(redis):
        began = time.monotonic()
        answer = broken.http.post("/v1/batches", json=broken.body(1))
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "redis_unavailable")
        assert int(answer.headers["retry-after"]) >= 1
        threading.Event().wait(max(0.0, seconds - (time.monotonic() - began)))
    until(lambda: broken.http.get("/readyz").status_code == 200, "ready")
    assert broken.ledger(batch_id)["succeeded"] >= acknowledged
    results = broken.results(batch_id)
    assert [(result["outcome"], result["attempt"]) for result in results] == [("succeeded", 1)] * 300


def test_a_redis_that_pauses_longer_than_a_lease_costs_no_attempt(broken: Any, until: Any) -> None:
    paused_redis(broken, until, 10.0)


@pytest.mark.slow
def test_a_redis_that_pauses_for_half_a_minute_costs_no_attempt(broken: Any, until: Any) -> None:
    paused_redis(broken, until, 30.0)


def test_a_redis_that_is_killed_and_comes_back_has_all_that_was_acknowledged(broken: Any, until: Any) -> None:
    broken.slow_model(0.3)
    batch_id = broken.submit(300)
    until(lambda: broken.ledger(batch_id)["succeeded"] > 20, "it goes on")
    submitted: list[str] = []
    unavailable: list[httpx.Response] = []
    enough = threading.Event()

    def keep_submitting() -> None:
        with httpx.Client(base_url=broken.local.url, timeout=60) as http:
            while not enough.is_set():
                answer = http.post("/v1/batches", json=broken.body(1))
                if answer.status_code == 201:
                    submitted.append(answer.json()["batch_id"])
                else:
                    unavailable.append(answer)

    submitter = threading.Thread(target=keep_submitting)
    submitter.start()
    try:
        for _ in range(2):
            known = len(submitted)
            until(lambda known=known: len(submitted) > known + 3, "batches are taken")
            seen = {item["rollout_id"] for item in page(broken, batch_id)}
            (redis,) = broken.processes("redis")
            redis.kill()
            until(lambda gone=redis.pid: [p for p in broken.processes("redis") if p.pid != gone], "another redis")
            until(lambda: broken.http.get("/readyz").status_code == 200, "ready")
            assert seen <= {item["rollout_id"] for item in page(broken, batch_id)}
    finally:
        enough.set()
        submitter.join()
    assert unavailable
    for answer in unavailable:
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
    all_succeeded(broken.results(batch_id), attempts=3)
    for name in submitted:
        all_succeeded(broken.results(name), attempts=3)


def page(broken: Any, batch_id: str) -> list[dict[str, Any]]:
    answer = broken.http.get(f"/v1/batches/{batch_id}/results", params={"limit": 500}).raise_for_status()
    found: list[dict[str, Any]] = answer.json()["items"]
    return found


def test_of_two_dispatchers_either_may_be_killed(broken: Any, until: Callable[..., Any]) -> None:
    broken.slow_model(0.3)
    with another(broken, "-m", "api.cli.main", "dispatcher") as second:
        batch_id = broken.submit(1500)  # more than the windows that run out while no dispatcher leads
        for _ in range(3):
            done = broken.ledger(batch_id)["succeeded"]
            until(lambda done=done: broken.ledger(batch_id)["succeeded"] > done, "it goes on")
            leader = broken.http.get("/v1/workers").json()["dispatcher"]
            if second.poll() is None and f"-{second.pid}-" in str(leader):
                second.kill()
            else:
                broken.processes("dispatcher")[0].kill()
            until(lambda old=leader: broken.http.get("/v1/workers").json()["dispatcher"] not in (None, old), "next")
        all_succeeded(broken.results(batch_id), attempts=1)


def test_a_worker_whose_clock_jumps_by_days_breaks_nothing(broken: Any, until: Any) -> None:
    broken.slow_model(0.3)
    with another(broken, "-c", CLOCK_THAT_JUMPS, "worker") as jumping:
        until(lambda: any(f"-{jumping.pid}-" in each["worker"] for each in broken.workers()), "it is in the books")
        batch_id = broken.submit(400)
        results = broken.results(batch_id)
        assert jumping.poll() is None
        jumping.terminate()
        assert jumping.wait(60) == 0
    assert {(result["outcome"], result["attempt"]) for result in results} == {("succeeded", 1)}
    by_it = [result for result in results if f"-{jumping.pid}-" in result["worker"]]
    assert by_it
    assert all(0 <= result["timing"]["total_s"] < 60 and 0 <= result["timing"]["queued_s"] < 60 for result in results)
    now = broken.http.get("/v1/batches").headers["date"]
    assert {result["finished_at"][:4] for result in by_it} == {now.split()[3]}
