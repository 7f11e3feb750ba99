"""The pool of threads for blocking environments, with calls that hang."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError, Future

import pytest

from gym.environments.hosting.threads import EnvironmentThreads


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Gate:
    """Holds whoever enters; `entered` counts them."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.open = threading.Event()

    def __call__(self) -> str:
        self.entered.release()
        assert self.open.wait(20)
        return threading.current_thread().name

    def wait_for(self, threads: int) -> None:
        for _ in range(threads):
            assert self.entered.acquire(timeout=20)


def test_no_more_calls_run_at_a_time_than_there_are_threads() -> None:
    gate = Gate()
    with EnvironmentThreads(2) as threads:
        calls = [threads.submit(gate) for _ in range(5)]
        gate.wait_for(2)
        assert not gate.entered.acquire(timeout=0.05)
        assert threads.load() == {"busy": 2, "waiting": 3, "hung": 0}
        gate.open.set()
        assert len({call.result(20) for call in calls}) == 2


def test_a_call_that_was_abandoned_keeps_nobody_waiting() -> None:
    gate = Gate()
    with EnvironmentThreads(1) as threads:
        hanging = threads.submit(gate)
        gate.wait_for(1)
        waiting = threads.submit(int, "7")
        threads.abandon(hanging)
        assert waiting.result(20) == 7
        assert threads.hung == 1
        gate.open.set()
        hanging.result(20)


def test_slow_calls_give_way_to_those_that_wait() -> None:
    gate, clock = Gate(), Clock()
    with EnvironmentThreads(2, slow_s=5.0, clock=clock) as threads:
        slow = [threads.submit(gate) for _ in range(2)]
        gate.wait_for(2)
        waiting = threads.submit(int, "7")
        clock.now = 4.9
        threads.relieve()
        assert threads.load()["waiting"] == 1
        clock.now = 5.0
        threads.relieve()
        assert waiting.result(20) == 7
        assert threads.hung == 0
        gate.open.set()
        assert all(call.result(20) for call in slow)


def test_threads_beyond_those_that_work_are_bounded_and_end_again() -> None:
    gate = Gate()
    before = threading.active_count()
    with EnvironmentThreads(1, most_hung=2) as threads:
        hanging: list[Future[str]] = []
        for _ in range(3):
            hanging.append(threads.submit(gate))
            gate.wait_for(1)
            threads.abandon(hanging[-1])
        waiting = threads.submit(int, "7")
        assert threads.load() == {"busy": 3, "waiting": 1, "hung": 3}
        gate.open.set()
        assert waiting.result(20) == 7
    for _ in range(2000):
        if threading.active_count() <= before:
            break
        threading.Event().wait(0.01)
    assert threading.active_count() <= before


def test_a_cancelled_call_is_not_begun() -> None:
    gate = Gate()
    with EnvironmentThreads(1) as threads:
        first = threads.submit(gate)
        gate.wait_for(1)
        second = threads.submit(gate)
        assert second.cancel()
        gate.open.set()
        first.result(20)
        with pytest.raises(CancelledError):
            second.result(20)
        assert threads.submit(int, "7").result(20) == 7
        assert not gate.entered.acquire(blocking=False)


def test_what_a_call_raises_reaches_whoever_waits() -> None:
    with EnvironmentThreads(1) as threads, pytest.raises(ValueError, match="invalid literal"):
        threads.submit(int, "seven").result(20)
