"""Place of a call in the queue of a policy whose endpoints are full."""

from __future__ import annotations

from collections.abc import Callable

from gym.model_client.routing.call_queue import QueuePlace
from gym.model_client.routing.endpoint_pool import EndpointPool


class QueueTicket:
    """Ticket of one call: joins the queue on demand, and leaves it when the call is sent or ends."""

    __slots__ = ("_pool", "place")

    def __init__(self) -> None:
        self._pool: EndpointPool | None = None
        self.place: QueuePlace | None = None

    async def turn(self, pool: EndpointPool, *, deadline: float, on_held: Callable[[], None] | None) -> None:
        """Wait in the queue of a pool for a limited time, then call `on_held`."""
        if self.place is None:
            self._pool, self.place = pool, pool.line.join()
        await self.place.turn(deadline=deadline)
        if on_held is not None:
            on_held()

    def leave(self) -> None:
        """Leave the queue, if the call has joined it."""
        if self._pool is not None and self.place is not None:
            self._pool.leave_line(self.place)
            self._pool = self.place = None

    def told(self) -> str:
        """Return the error text about the queue for a call that waited until its deadline."""
        if self._pool is None:
            return ""
        return (
            f": {len(self._pool.line)} calls wait because every endpoint has the policy's max_concurrency "
            f"({self._pool.max_concurrency}) in flight in this process"
        )
