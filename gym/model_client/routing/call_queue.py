"""The calls that wait because every endpoint of a policy is full, in the order in which they came.

Invariant: nobody overtakes. With room for n calls only the first n in the line may go, and one that has just come only
where there is room beyond the line. Whoever takes a place gives it up in a `finally`, so that a call that is cancelled
holds nobody up. A call that has failed and is sent again joins at the end.
"""

from __future__ import annotations

import asyncio
from itertools import islice

LOOK_AGAIN_S = 1.0  # an endpoint that becomes ready for a probe wakes nobody


class QueuePlace:
    """One call's place."""

    __slots__ = ("_woken",)

    def __init__(self) -> None:
        self._woken = asyncio.Event()

    async def turn(self, *, deadline: float) -> None:
        """Wait until the call may have its turn, at most until its deadline (`loop.time()`) and never for long."""
        self._woken.clear()
        try:
            async with asyncio.timeout_at(min(deadline, asyncio.get_running_loop().time() + LOOK_AGAIN_S)):
                await self._woken.wait()
        except TimeoutError:
            pass

    def wake(self) -> None:
        """There is room."""
        self._woken.set()


class CallQueue:
    """The line before one policy's endpoints."""

    def __init__(self) -> None:
        self._places: dict[QueuePlace, None] = {}

    def __len__(self) -> int:
        return len(self._places)

    def join(self) -> QueuePlace:
        """A place at the end."""
        place = QueuePlace()
        self._places[place] = None
        return place

    def leave(self, place: QueuePlace, *, room: int) -> None:
        """Give a place up; whoever moves up into the room is told."""
        self._places.pop(place, None)
        self.wake(room)

    def admits(self, place: QueuePlace | None, room: int) -> bool:
        """Whether a call may be sent now, with room for so many; None has no place yet."""
        if place is None:
            return room > len(self._places)
        return place in islice(self._places, room)

    def wake(self, room: int) -> None:
        """Tell those who may go."""
        for place in islice(self._places, room):
            place.wake()
