"""Threads for the blocking methods of environments, some of which never return.

Invariant: a long call keeps no other call waiting for ever. A slow thread, or one whose caller has given up, is
replaced by a new one, up to `most_hung` beyond the `most` that work; it ends when its call returns after all. All are
daemons, so that a hung one does not keep the process from ending.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, TypeVar

from gym.jsontypes import JsonObject

SLOW_S = 2.0
Result = TypeVar("Result")


@dataclass(slots=True)
class _Job:
    future: Future[Any]
    call: Callable[[], object]
    started: float = 0.0
    replaced: bool = False  # its thread is one of those beyond `most`
    hung: bool = False


class EnvironmentThreads:
    """A pool of threads, safe to use from any thread. Its owner calls `relieve` about twice a second."""

    def __init__(
        self, most: int, *, most_hung: int = 32, slow_s: float = SLOW_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most = most
        self._most_hung = most_hung
        self._slow_s = slow_s
        self._clock = clock
        self._lock = threading.Lock()
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        self._running: dict[Future[Any], _Job] = {}
        self._threads = self._waiting = self._replaced = self._started = 0
        self._closed = False

    @property
    def hung(self) -> int:
        """Number of running threads whose caller has given up."""
        with self._lock:
            return sum(job.hung for job in self._running.values())

    def load(self) -> JsonObject:
        """Return the load for a worker's description."""
        return {"busy": len(self._running), "waiting": self._waiting, "hung": self.hung}

    def submit(self, call: Callable[..., Result], *args: object) -> Future[Result]:
        """Run a call in a thread. A future cancelled before its start is not run."""
        future: Future[Result] = Future()
        job = _Job(future, lambda: call(*args))
        with self._lock:
            if self._closed:
                raise RuntimeError("the threads have been closed")
            self._waiting += 1
            self._queue.put(job)
            self._make_threads()
        return future

    def abandon(self, future: Future[Any]) -> None:
        """Give up a call: if it is still running, its thread counts as hung."""
        with self._lock:
            job = self._running.get(future)
            if job is not None:
                job.hung = True
                self._replace(job)
                self._make_threads()

    def relieve(self) -> None:
        """Replace threads that have run one call for long, while other calls wait."""
        with self._lock:
            if self._waiting:
                slow_since = self._clock() - self._slow_s
                for job in self._running.values():
                    if job.started <= slow_since:
                        self._replace(job)
                self._make_threads()

    def close(self) -> None:
        """Accept no more calls; idle threads end now, others with their call. Does not wait."""
        with self._lock:
            self._closed = True
            for _ in range(self._threads):
                self._queue.put(None)

    def __enter__(self) -> EnvironmentThreads:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _replace(self, job: _Job) -> None:
        if not job.replaced:
            job.replaced = True
            self._replaced += 1

    def _make_threads(self) -> None:
        allowed = self._most + min(self._replaced, self._most_hung)
        while self._threads < min(allowed, len(self._running) + self._waiting):
            self._threads += 1
            self._started += 1
            threading.Thread(target=self._work, name=f"environment-{self._started}", daemon=True).start()

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            with self._lock:
                self._waiting -= 1
                begun = job.future.set_running_or_notify_cancel()
                if begun:
                    job.started = self._clock()
                    self._running[job.future] = job
            if begun:
                _run(job)
            with self._lock:
                if self._running.pop(job.future, None) is not None and job.replaced:
                    self._replaced -= 1
                del job
                if self._threads > self._most + min(self._replaced, self._most_hung):
                    break
        with self._lock:
            self._threads -= 1


def _run(job: _Job) -> None:
    try:
        result = job.call()
    except BaseException as error:  # noqa: BLE001  delivered through the future
        job.future.set_exception(error)
    else:
        job.future.set_result(result)
