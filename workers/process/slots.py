"""Slots of a worker, the gate that closes when none is free, and the pace at which a busy worker takes rollouts.

The limit is that of the settings, and lower while the event loop cannot keep up. Rollouts beyond those that keep the
loop busy make nothing faster: each only waits longer for its turn, and so does a small batch behind a large one. As in
CoDel (Nichols and Jacobson, "Controlling queue delay", 2012), a queue is bad when its delay lasts for an interval. A
burst, such as a thousand replies at once, is worked off within it and changes nothing. A worker that was idle starts
low and doubles while its loop keeps up, within a fraction of a second up to any number.

Invariant: reserved slots are rollouts that wait for a thread or run. Slots count rollouts, not jobs, and are reserved
when a job is received, before its thread starts; so a worker never holds more than its slots and one slice. While the
worker is held for a job that runs alone, nothing else is fetched; that job takes no slots.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import partial

TARGET_S = 0.01
SAMPLE_S = 0.05
SAMPLES = 10
LEAST = 32
"""Rollouts that are always taken, so that there is work while the next slice is fetched."""
FIRST = 64


class Slots:
    """A counter of rollouts; safe to use from any thread."""

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
        """The number of rollouts that wait for a thread or run."""
        return self._taken

    def has_room(self) -> bool:
        """Return whether another job may be fetched."""
        return not self._closed and not self._holds and self._taken < self.limit

    @property
    def held(self) -> bool:
        """Return whether a job that runs alone is here."""
        return self._holds > 0

    def close(self) -> None:
        """Take nothing more; used when the worker drains."""
        self._closed = True

    def notify(self, on_room: Callable[[], None] | None) -> None:
        """Set the function that is called when there is room again after there was none."""
        self._on_room = on_room

    def notify_busy(self, on_busy: Callable[[], object]) -> None:
        """Set the function that is called when an idle worker gets a job."""
        self._on_busy = on_busy

    def reserve(self, rollouts: int) -> None:
        """Reserve slots for a received job of so many rollouts."""
        with self._lock:
            was_idle = not self._taken
            self._taken += rollouts
        if was_idle and self._on_busy is not None:
            self._on_busy()

    def limit_to(self, rollouts: int) -> None:
        """Limit the slots to so many from now on; running rollouts continue."""
        with self._lock:
            was_full = self._taken >= self.limit
            self.limit = rollouts
            opened = was_full and self._taken < self.limit
        if opened and self._on_room is not None:
            self._on_room()

    def hold(self) -> None:
        """Hold the worker for a received job that must run alone; `release` follows when it is over."""
        with self._lock:
            self._holds += 1

    def release(self) -> None:
        """Release the worker after a job that ran alone."""
        with self._lock:
            self._holds -= 1
        if self.has_room() and self._on_room is not None:
            self._on_room()

    def free(self, rollouts: int = 1) -> None:
        """Free the slots of rollouts that ended or that this worker may not start."""
        with self._lock:
            was_full = self._taken >= self.limit
            self._taken -= rollouts
            opened = was_full and self._taken < self.limit
        if opened and self._on_room is not None:
            self._on_room()


class IntakePace:
    """The pace rule, fed with one delay of the loop after the other."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._delays: list[float] = []
        self._rising = True  # the loop has kept up since it was last idle
        slots.limit_to(min(FIRST, slots.total))

    def idle(self) -> None:
        """Note that the loop has no work that could be late."""
        self._delays.clear()
        self._rising = True
        self._slots.limit_to(min(FIRST, self._slots.total))

    def sample(self, delay_s: float) -> None:
        """Take a delay of the loop, and change the limit if necessary."""
        slots = self._slots
        self._delays.append(delay_s)
        if self._rising and delay_s < TARGET_S / 4 and slots.taken > slots.limit // 2:
            slots.limit_to(min(slots.total, 2 * slots.limit))
        if len(self._delays) < SAMPLES:
            return
        median = sorted(self._delays)[SAMPLES // 2]
        if median > TARGET_S:
            self._rising = False
            fewer = int(min(slots.limit, slots.taken) * max(0.5, TARGET_S / median))
            slots.limit_to(min(slots.limit, max(LEAST, fewer)))
        elif median < TARGET_S / 2:
            more = slots.limit if median < TARGET_S / 8 else slots.limit // 4
            slots.limit_to(min(slots.total, slots.limit + more))
        self._delays.clear()


async def keep_pace(slots: Slots) -> None:
    """Limit the slots by the delay of this loop, until cancelled."""
    loop, pace, busy = asyncio.get_running_loop(), IntakePace(slots), asyncio.Event()
    slots.notify_busy(partial(loop.call_soon_threadsafe, busy.set))
    while True:
        if not slots.taken:
            pace.idle()
            await busy.wait()
        busy.clear()
        began = loop.time()
        await asyncio.sleep(SAMPLE_S)
        pace.sample(loop.time() - began - SAMPLE_S)
