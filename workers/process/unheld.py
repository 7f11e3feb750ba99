"""Rollouts that Redis assigns to this worker and that it does not hold: handed back as an infrastructure fault.

Their end was lost on the way to Redis, or Redis lost it: a replica that lagged was promoted, a backup restored.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection

from gym.batch import BatchSpec
from gym.state.assignments import Assignment, Assignments, Told
from gym.state.redis.store import Store
from workers.process.committer import Committer

MESSAGE = "its worker does not run it any more, and Redis has no end of it; Redis may have lost its last writes"
_LOG = logging.getLogger(__name__)


class Unheld:
    """The search of a worker. `held`: the (batch, member, token) that it runs or is about to; an empty token is any."""

    def __init__(
        self,
        store: Store,
        committer: Committer,
        worker: str,
        *,
        every_s: float,
        spec: Callable[[str], Awaitable[BatchSpec | None]],
        held: Callable[[], Collection[tuple[str, str, str]]],
    ) -> None:
        self._assignments = Assignments(store)
        self._committer = committer
        self._worker = worker
        self._every_s = every_s
        self._spec = spec
        self._held = held
        self._due_at = 0.0

    async def hand_back_when_due(self) -> Told | None:
        """Compare with the assignments sent to this worker, and return those. Raises redis-py's errors."""
        now = time.monotonic()
        if now < self._due_at:
            return None
        self._due_at = now + self._every_s
        told = await self._assignments.told(self._worker)
        held = self._held()
        by_batch: dict[str, list[Assignment]] = {}
        for each in told.rollouts if told is not None else ():
            names = (each.batch_id, each.member)
            if (*names, each.token) not in held and (*names, "") not in held:
                by_batch.setdefault(each.batch_id, []).append(each)
        for batch_id, unheld in by_batch.items():
            spec = await self._spec(batch_id)
            if spec is not None:
                await self._hand_back(unheld, spec.limits.max_attempts)
        return told

    async def _hand_back(self, unheld: list[Assignment], max_attempts: int) -> None:
        calls = self._assignments.take_back_calls(unheld, max_attempts=max_attempts, message=MESSAGE)
        answers = await asyncio.gather(*map(self._committer.send, calls))
        again, failed = (sum(numbers) for numbers in zip(*answers, strict=True))
        if again or failed:
            self._committer.add_total("unheld", again + failed)
            _LOG.warning(
                "batch %s: %d rollouts were assigned to this worker and not here: %d run again, %d had no attempt left",
                unheld[0].batch_id,
                again + failed,
                again,
                failed,
                extra={"action": "unheld"},
            )


def compare_every_s(lease_ttl_s: float) -> float:
    """Return the interval of each side's looks: an assignment, read one look later, is handled within a lease."""
    return lease_ttl_s / 3
