"""How many rollouts a worker takes at a time while its event loop is the bottleneck.

Rollouts beyond those that keep the loop busy make nothing faster: each only waits longer for its turn, and so does
whoever comes next, such as a small batch behind a large one. Whether the loop cannot keep up is told as CoDel tells a
bad queue from a good one (Nichols and Jacobson, "Controlling queue delay", 2012): by a delay that stands over an
interval. A burst, such as a thousand answers in one moment, is worked off within it and changes nothing.

A worker that was idle starts low and doubles while its loop answers at once, a fraction of a second up to any number.
"""

from __future__ import annotations

import asyncio
from functools import partial

from workers.process.slots import Slots

TARGET_S = 0.01
SAMPLE_S = 0.05
SAMPLES = 10
LEAST = 32
"""Rollouts that are always taken, so that there is work while the next slice is fetched."""
FIRST = 64


class IntakePace:
    """The rule, fed with one delay of the loop after the other."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._delays: list[float] = []
        self._rising = True  # nothing has stood in the way since it was last idle
        slots.limit_to(min(FIRST, slots.total))

    def idle(self) -> None:
        """Nothing that the loop could be late with."""
        self._delays.clear()
        self._rising = True
        self._slots.limit_to(min(FIRST, self._slots.total))

    def sample(self, delay_s: float) -> None:
        """The loop was late by so much; moves the limit where that is called for."""
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
