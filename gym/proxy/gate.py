"""Pause and resume of policies in this process, and how many calls each has in flight and held.

Invariant: while a policy is paused no call to it is sent; a call that has not been sent yet, or waits to be sent again,
is held until the policy is resumed, deleted or its deadline comes. `hold` and `drain` are the same here: what they
differ in, waiting for the calls in flight, is done by whoever asked for the pause and reads `in_flight`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from gym.errors import ModelUnreachable
from gym.proxy.policies import PolicyRecord, PolicySource, newest

TICK_S = 0.1


@dataclass(slots=True)
class Lane:
    """The calls of one policy: sent and not answered, and held."""

    in_flight: int = 0
    held: int = 0


class Gate:
    """Every call enters before it is sent and leaves when it is answered or given up."""

    def __init__(self, policies: PolicySource, *, tick_s: float = TICK_S) -> None:
        self._policies = policies
        self._tick_s = tick_s
        self.lanes: dict[str, Lane] = {}

    async def enter(
        self, record: PolicyRecord, *, deadline: float, on_held: Callable[[], None] | None = None
    ) -> PolicyRecord:
        """Wait while the policy is paused; returns its newest record. `leave` must follow.

        `on_held` is called now and then while the call is held, so that a watch for stalled rollouts can be told.
        Raises ModelUnreachable where the policy is deleted, or still paused at the deadline (`loop.time()`).
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
        self, record: PolicyRecord, lane: Lane, deadline: float, on_held: Callable[[], None] | None
    ) -> PolicyRecord:
        loop = asyncio.get_running_loop()
        began = loop.time()
        lane.held += 1
        try:
            while record.paused is not None:
                remaining_s = deadline - loop.time()
                if remaining_s <= 0:
                    raise ModelUnreachable(
                        f"policy {record.name!r} is paused ({record.paused}): the call was held for "
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

    def _newest(self, record: PolicyRecord) -> PolicyRecord:
        current = newest(self._policies, record)
        if current is None:
            raise ModelUnreachable(
                f"policy {record.name!r} is not registered any more; register it with PUT /v1/policies/{record.name}"
            )
        return current
