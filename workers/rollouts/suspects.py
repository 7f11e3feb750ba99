"""Isolation of suspects: rollouts present at several deaths of a worker run one by one, while nothing else runs.

Invariant: a poison rollout takes nothing down but itself. The job holds the worker from its arrival, so nothing else is
fetched; its rollouts start when those that were running have ended. Those that have not started are handed back
unchanged.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from gym.state.ledger.rollouts import Claim, Rollouts
from workers.process.committer import Committer
from workers.process.held_rollouts import HeldRollouts
from workers.process.slice_runtime import Slice, SliceRuntime
from workers.rollouts.runner import RunningRollout, start

POLL_S = 0.1
PATIENCE_S = 900.0
AGAIN_S = 30.0
_LOG = logging.getLogger(__name__)


class SuspectRuns:
    """The suspect runs of one worker."""

    def __init__(
        self,
        runtime: SliceRuntime[Claim, RunningRollout, int],
        held: HeldRollouts[RunningRollout],
        rollouts: Rollouts,
        committer: Committer,
    ) -> None:
        self._runtime = runtime
        self._held = held
        self._rollouts = rollouts
        self._committer = committer
        self._turn = asyncio.Lock()

    async def run(self, job: Slice[int]) -> None:
        """Claim suspects and run them in order; the worker was held for them when the job arrived."""
        try:
            with self._held.claiming(job.batch_id, [member for member, _ in job.wanted]) as here:
                suspects = await self._runtime.claim(job, here, even_parked=True)
            if suspects:
                await self._run_in_order(suspects)
        finally:
            self._runtime.slots.release()

    async def _run_in_order(self, suspects: Sequence[RunningRollout]) -> None:
        left = [suspect.claim for suspect in suspects]
        spec = suspects[0].spec
        again_s = 0.0
        with self._held.waiting(left):
            try:
                async with self._turn:
                    if not await self._quiet():
                        again_s = AGAIN_S
                        return
                    while left and not self._held.draining:
                        claim = left[0]
                        begun = await self._committer.send(self._rollouts.alone_call(claim))
                        del left[0]
                        if begun:
                            name = f"{claim.batch_id}:{claim.member}"
                            _LOG.info("%s runs alone", name, extra={"action": "suspect_alone"})
                            running = start(claim, spec)
                            running.alone = True
                            self._runtime.start(running)
                            await running.ended.wait()
            finally:
                calls = [self._rollouts.retry_call(claim, b"", again_s) for claim in left]
                await asyncio.gather(*map(self._committer.send, calls))

    async def _quiet(self) -> bool:
        """Wait until nothing else runs here; False if that takes too long or the worker drains."""
        slots = self._runtime.slots
        try:
            async with asyncio.timeout(PATIENCE_S):
                while slots.taken and not self._held.draining:  # noqa: ASYNC110  threads free slots, without an event
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            _LOG.warning("no quiet for suspects within %g s", PATIENCE_S, extra={"action": "suspect_waits"})
            return False
        return not self._held.draining
