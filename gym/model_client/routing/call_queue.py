"""FIFO queue of calls that wait because every endpoint of a policy is full.

Invariant: no call overtakes another. With room for n calls, only the first n in the queue may be sent. A new call may
be sent at once only if there is room beyond the queue. A queued call gives its place up in a `finally`, so that a
cancelled call does not block others. A retried call joins at the end.
"""

from __future__ import annotations

import asyncio
from itertools import islice

LOOK_AGAIN_S = 1.0  # an endpoint that becomes ready for a probe wakes no waiter


class QueuePlace:
    """Place of one call in the queue."""

    __slots__ = ("_woken",)

    def __init__(self) -> None:
        self._woken = asyncio.Event()

    async def turn(self, *, deadline: float) -> None:
        """Wait until the call may be sent, until its deadline (`loop.time()`) or for `LOOK_AGAIN_S`."""
        self._woken.clear()
        try:
            async with asyncio.timeout_at(min(deadline, asyncio.get_running_loop().time() + LOOK_AGAIN_S)):
                await self._woken.wait()
        except TimeoutError:
            pass

    def wake(self) -> None:
        """Wake the call: there is room."""
        self._woken.set()


class CallQueue:
    """Queue for the endpoints of one policy."""

    def __init__(self) -> None:
        self._places: dict[QueuePlace, None] = {}

    def __len__(self) -> int:
        return len(self._places)

    def join(self) -> QueuePlace:
        """Add a place at the end."""
        place = QueuePlace()
        self._places[place] = None
        return place

    def leave(self, place: QueuePlace, *, room: int) -> None:
        """Give a place up and wake the calls that now have room."""
        self._places.pop(place, None)
        self.wake(room)

    def admits(self, place: QueuePlace | None, room: int) -> bool:
        """Return whether a call may be sent, with room for `room` calls; `place` is None for a new call."""
        if place is None:
            return room > len(self._places)
        return place in islice(self._places, room)

    def wake(self, room: int) -> None:
        """Wake the first `room` calls."""
        for place in islice(self._places, room):
            place.wake()
