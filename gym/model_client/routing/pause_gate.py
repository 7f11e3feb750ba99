"""Pause and resume of policies in this process, and how many calls each has in flight and held.

Invariant: while a policy is paused no call to it is sent; a call that has not been sent yet, or waits to be sent again,
is held until the policy is resumed, deleted or its deadline comes. `hold` and `drain` are the same here: what they
differ in, waiting for the calls in flight, is done by whoever asked for the pause and reads `in_flight`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from gym.errors import ModelUnreachable, Unavailable
from gym.model_client.routing.served_model import ModelSource, ServedModel, newest

TICK_S = 0.1


@dataclass(slots=True)
class Lane:
    """The calls of one policy: sent and not answered, and held."""

    in_flight: int = 0
    held: int = 0


class Gate:
    """Every call enters before it is sent and leaves when it is answered or given up."""

    def __init__(self, policies: ModelSource, *, tick_s: float = TICK_S) -> None:
        self._policies = policies
        self._tick_s = tick_s
        self._closed = False
        self.lanes: dict[str, Lane] = {}

    def close(self) -> None:
        """Refuse the calls that are held, and those that would be from now on: the process is ending."""
        self._closed = True

    async def enter(
        self, record: ServedModel, *, deadline: float, on_held: Callable[[], None] | None = None
    ) -> ServedModel:
        """Wait while the policy is paused; returns its newest record. `leave` must follow.

        `on_held` is called now and then while the call is held, so that a watch for stalled rollouts can be told.
        Raises ModelUnreachable where the policy is deleted, or still paused at the deadline (`loop.time()`), and
        Unavailable where the gate is closed.
        """
        lane = self.lanes.get(record.name)
        if lane is None:
            lane = self.lanes[record.name] = Lane()
        current = self._newest(record)
        if current.paused is not None:
            current = await self._hold(current, lane, deadline, on_held)
        lane.in_flight += 1
        return current

    def leave(self, name: str) -> None:
        """The call is over, however it ended."""
        self.lanes[name].in_flight -= 1

    async def _hold(
        self, record: ServedModel, lane: Lane, deadline: float, on_held: Callable[[], None] | None
    ) -> ServedModel:
        loop = asyncio.get_running_loop()
        began = loop.time()
        lane.held += 1
        try:
            while record.paused is not None:
                if self._closed:
                    raise Unavailable(
                        "shutting_down",
                        f"{record.title} is paused and this process is shutting down; send the call again",
                        retry_after_s=1.0,
                    )
                remaining_s = deadline - loop.time()
                if remaining_s <= 0:
                    raise ModelUnreachable(
                        f"{record.title} is paused ({record.paused}): the call was held for "
                        f"{loop.time() - began:.1f} s, until its deadline; "
                        f"resume it with POST /v1/policies/{record.name}/resume"
                    )
                if on_held is not None:
                    on_held()
                await asyncio.sleep(min(self._tick_s, remaining_s))
                record = self._newest(record)
        finally:
            lane.held -= 1
        return record

    def _newest(self, record: ServedModel) -> ServedModel:
        current = newest(self._policies, record)
        if current is None:
            raise ModelUnreachable(
                f"{record.title} is not registered any more; register it with PUT /v1/policies/{record.name}"
            )
        return current
