"""Pause and resume of policies in this process, with counts of calls in flight and held.

Invariant: while a policy is paused, no call to it is sent. Unsent calls and retries are held until the policy is
resumed or deleted, or until their deadline. `hold` and `drain` are the same here: `drain` also waits for the calls in
flight, which the process that requested the pause does by reading `in_flight`.
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
    """Call counts of one policy: sent and unanswered, and held."""

    in_flight: int = 0
    held: int = 0


class Gate:
    """Gate that every call enters before it is sent and leaves when it is answered or given up."""

    def __init__(self, policies: ModelSource, *, tick_s: float = TICK_S) -> None:
        self._policies = policies
        self._tick_s = tick_s
        self._closed = False
        self.lanes: dict[str, Lane] = {}

    def close(self) -> None:
        """Refuse held calls, now and later: the process is shutting down."""
        self._closed = True

    async def enter(
        self, record: ServedModel, *, deadline: float, on_held: Callable[[], None] | None = None
    ) -> ServedModel:
        """Wait while the policy is paused; return its newest record. `leave` must follow.

        `on_held` is called regularly while the call is held, so that the rollout does not count as stalled.
        Raises ModelUnreachable if the policy is deleted or still paused at the deadline (`loop.time()`), and
        Unavailable if the gate is closed.
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
        """Note the end of a call."""
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
