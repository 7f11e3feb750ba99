"""Waiting for capacity is not stalling: an environment that waits for its turn says so while it waits.

    with waiting_for_capacity():
        await place.acquire()

Whoever runs the rollout listens in the task that calls `setup`; elsewhere nobody does, and nothing happens.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class CapacityWaits:
    """The waits of one rollout, several of which may be under way."""

    def __init__(self) -> None:
        self._waiting = 0
        self._ended_at: float | None = None

    @contextmanager
    def wait(self) -> Iterator[None]:
        """One of them."""
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1
            self._ended_at = time.monotonic()

    def last(self, now: float) -> float | None:
        """When it last waited, by time.monotonic(); `now` while it does, None where it never has."""
        return now if self._waiting else self._ended_at


_LISTENING: ContextVar[CapacityWaits | None] = ContextVar("capacity_waits", default=None)


def listen_to_waits(waits: CapacityWaits) -> None:
    """Have what waits in this task from now on noted there."""
    _LISTENING.set(waits)


@contextmanager
def waiting_for_capacity() -> Iterator[None]:
    """Around a wait for a place that others hold; what the rollout as a whole may take still bounds it."""
    waits = _LISTENING.get()
    if waits is None:
        yield
    else:
        with waits.wait():
            yield
