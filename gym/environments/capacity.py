"""Waiting for capacity is not stalling: an environment reports while it waits for capacity.

    with waiting_for_capacity():
        await place.acquire()

The code that runs the rollout listens in the task that calls `setup`; without a listener nothing happens.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class CapacityWaits:
    """Waits of one rollout; several may be open at once."""

    def __init__(self) -> None:
        self._waiting = 0
        self._ended_at: float | None = None

    @contextmanager
    def wait(self) -> Iterator[None]:
        """Record one wait."""
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1
            self._ended_at = time.monotonic()

    def last(self, now: float) -> float | None:
        """Return when the rollout last waited, by time.monotonic(): `now` during a wait, None if it never has."""
        return now if self._waiting else self._ended_at


_LISTENING: ContextVar[CapacityWaits | None] = ContextVar("capacity_waits", default=None)


def listen_to_waits(waits: CapacityWaits) -> None:
    """Have later waits in this task recorded there."""
    _LISTENING.set(waits)


@contextmanager
def waiting_for_capacity() -> Iterator[None]:
    """Mark a wait for capacity that others use; the limits of the whole rollout still bound it."""
    waits = _LISTENING.get()
    if waits is None:
        yield
    else:
        with waits.wait():
            yield
