"""How many rollouts this worker can still take, and the gate that closes when there is no room.

The room is `limit`: as many as the settings say, fewer while the event loop cannot keep up (`workers.process.pace`).

Invariant: what was reserved is what waits for a thread or runs. The count is by rollouts, not by jobs, and it rises
when a job is received, before its thread starts; so a worker never holds more than its slots and one slice. While the
worker is held for a job that runs alone, nothing else is fetched; that job takes no slots.
"""

from __future__ import annotations

import threading
from collections.abc import Callable


class Slots:
    """Counts rollouts; safe to use from any thread."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.limit = total
        self._taken = 0
        self._holds = 0
        self._closed = False
        self._lock = threading.Lock()
        self._on_room: Callable[[], None] | None = None
        self._on_busy: Callable[[], object] | None = None

    @property
    def taken(self) -> int:
        """Rollouts that wait for a thread or run."""
        return self._taken

    def has_room(self) -> bool:
        """Whether another job may be fetched."""
        return not self._closed and not self._holds and self._taken < self.limit

    @property
    def held(self) -> bool:
        """Whether a job that runs alone is here."""
        return self._holds > 0

    def close(self) -> None:
        """Take nothing more; used when the worker drains."""
        self._closed = True

    def notify(self, on_room: Callable[[], None] | None) -> None:
        """Call this when there is room again after there was none."""
        self._on_room = on_room

    def notify_busy(self, on_busy: Callable[[], object]) -> None:
        """Call this when there is something where there was nothing."""
        self._on_busy = on_busy

    def reserve(self, rollouts: int) -> None:
        """A job of so many rollouts was received."""
        with self._lock:
            was_idle = not self._taken
            self._taken += rollouts
        if was_idle and self._on_busy is not None:
            self._on_busy()

    def limit_to(self, rollouts: int) -> None:
        """Take so many at a time from now on; what runs goes on."""
        with self._lock:
            was_full = self._taken >= self.limit
            self.limit = rollouts
            opened = was_full and self._taken < self.limit
        if opened and self._on_room is not None:
            self._on_room()

    def hold(self) -> None:
        """A job was received that must run alone; `release` follows when it is over."""
        with self._lock:
            self._holds += 1

    def release(self) -> None:
        """A job that ran alone is over."""
        with self._lock:
            self._holds -= 1
        if self.has_room() and self._on_room is not None:
            self._on_room()

    def free(self, rollouts: int = 1) -> None:
        """So many rollouts ended or were not ours to start."""
        with self._lock:
            was_full = self._taken >= self.limit
            self._taken -= rollouts
            opened = was_full and self._taken < self.limit
        if opened and self._on_room is not None:
            self._on_room()
