"""The calls that wait because every endpoint of a policy is full, in the order in which they came.

Invariant: nobody overtakes. With room for n calls only the first n in the line may go, and one that has just come only
where there is room beyond the line. Whoever takes a place gives it up in a `finally`, so that a call that is cancelled
holds nobody up. A call that has failed and is sent again joins at the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gym.proxy.endpoints import EndpointPool

LOOK_AGAIN_S = 1.0  # an endpoint that becomes ready for a probe wakes nobody


class Place:
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


class Line:
    """The line before one policy's endpoints."""

    def __init__(self) -> None:
        self._places: dict[Place, None] = {}

    def __len__(self) -> int:
        return len(self._places)

    def join(self) -> Place:
        """A place at the end."""
        place = Place()
        self._places[place] = None
        return place

    def leave(self, place: Place, *, room: int) -> None:
        """Give a place up; whoever moves up into the room is told."""
        self._places.pop(place, None)
        self.wake(room)

    def admits(self, place: Place | None, room: int) -> bool:
        """Whether a call may be sent now, with room for so many; None has no place yet."""
        if place is None:
            return room > len(self._places)
        return place in islice(self._places, room)

    def wake(self, room: int) -> None:
        """Tell those who may go."""
        for place in islice(self._places, room):
            place.wake()


class Waiting:
    """One call's part in this: it takes a place when it must, and leaves when it is sent or ends."""

    __slots__ = ("_pool", "place")

    def __init__(self) -> None:
        self._pool: EndpointPool | None = None
        self.place: Place | None = None

    async def turn(self, pool: EndpointPool, *, deadline: float, on_held: Callable[[], None] | None) -> None:
        """Wait in the line of a pool for a while; `on_held` hears of it."""
        if self.place is None:
            self._pool, self.place = pool, pool.line.join()
        await self.place.turn(deadline=deadline)
        if on_held is not None:
            on_held()

    def leave(self) -> None:
        """Give the place up, if there is one."""
        if self._pool is not None and self.place is not None:
            self._pool.leave_line(self.place)
            self._pool = self.place = None

    def told(self) -> str:
        """What a call that waited until its deadline says of it."""
        if self._pool is None:
            return ""
        return (
            f": {len(self._pool.line)} calls wait because every endpoint has the policy's max_concurrency "
            f"({self._pool.max_concurrency}) in flight in this process"
        )
