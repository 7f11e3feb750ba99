"""Runs rollouts that were present at several deaths of a worker, one by one, while the worker runs nothing else.

Invariant: what such a rollout does to its worker it does to itself only. The job holds the worker from its arrival, so
nothing else is fetched; it begins when what was there has ended. What has not begun is handed back as it came.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from gym.batch import BatchSpec
from gym.state.ledger.rollouts import Claim, Rollouts
from workers.process.committer import Committer
from workers.process.slots import Slots
from workers.rollouts.runner import RunningRollout

POLL_S = 0.1
PATIENCE_S = 900.0
AGAIN_S = 30.0
_LOG = logging.getLogger(__name__)


class SuspectRuns:
    """One per worker; `start` begins a claimed rollout, `draining` says that the worker takes up nothing more."""

    def __init__(
        self,
        *,
        slots: Slots,
        rollouts: Rollouts,
        committer: Committer,
        start: Callable[[Claim, BatchSpec], RunningRollout],
        draining: Callable[[], bool],
    ) -> None:
        self._slots = slots
        self._rollouts = rollouts
        self._committer = committer
        self._start = start
        self._draining = draining
        self._turn = asyncio.Lock()
        self._waiting: list[list[Claim]] = []

    @property
    def waiting(self) -> list[Claim]:
        """Claims that have not begun, or are on their way back."""
        return [claim for claims in self._waiting for claim in claims]

    async def run(self, claims: Sequence[Claim], spec: BatchSpec) -> None:
        """Run them in order; the worker is held for as long."""
        left = list(claims)
        self._waiting.append(left)
        again_s = 0.0
        try:
            async with self._turn:
                if not await self._quiet():
                    again_s = AGAIN_S
                    return
                while left and not self._draining():
                    claim = left[0]
                    begun = await self._committer.send(self._rollouts.alone_call(claim))
                    del left[0]
                    if begun:
                        _LOG.info("%s:%s runs alone", claim.batch_id, claim.member, extra={"action": "suspect_alone"})
                        await self._start(claim, spec).ended.wait()
        finally:
            calls = [self._rollouts.retry_call(claim, b"", again_s) for claim in left]
            try:
                await asyncio.gather(*map(self._committer.send, calls))
            finally:
                self._waiting = [claims for claims in self._waiting if claims is not left]

    async def _quiet(self) -> bool:
        """Wait until nothing else is here; false where that takes too long or the worker drains."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while self._slots.taken and not self._draining():  # noqa: ASYNC110  threads free slots, without an event
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            _LOG.warning("no quiet for suspects within %g s", PATIENCE_S, extra={"action": "suspect_waits"})
            return False
        return not self._draining()
