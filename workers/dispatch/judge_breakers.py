"""Rollouts that are parked because their judge keeps failing: they stay queued, except for a probe now and then.

Invariant: no rollout is parked for ever. It is released when its judge works again, or sent as a probe. If its
judge's deadline has passed, it is sent to be ended. Parked rollouts are recorded in Redis, so any dispatcher can
release them.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence

from gym.config import Settings
from gym.state.ledger.breakers import Breaker, Breakers
from gym.state.ledger.judging import JudgeQueue, Judging
from gym.state.redis.store import Store
from workers.dispatch.batch import ActiveBatch
from workers.dispatch.breakers import LOOK_AGAIN_S, say_probed
from workers.dispatch.publisher import JudgeJob
from workers.dispatch.quarantine import Quarantine

JudgeQueues = Sequence[tuple[ActiveBatch, JudgeQueue]]
"""The line before one judge: that of each batch."""


class JudgeDispatchBreakers:
    """The parked rollouts of all judges; one per dispatcher."""

    def __init__(self, settings: Settings, store: Store, quarantine: Quarantine | None = None) -> None:
        self._quarantine = quarantine or Quarantine(store)
        self._slice_size = settings.dispatcher.slice_size
        self._store = store
        self._judging = Judging(store)
        self._breakers = Breakers(store, settings.breakers)
        self._look_again_at: dict[str, float] = {}

    async def jobs(self, breaker: Breaker, lines: JudgeQueues, room: int) -> list[JudgeJob]:
        """Park newly queued rollouts; return jobs for those past their deadline, and a probe if one is due."""
        judge = breaker.key.name
        if time.monotonic() < self._look_again_at.get(judge, 0.0):
            return []
        self._look_again_at[judge] = time.monotonic() + LOOK_AGAIN_S
        for batch, line in lines:
            if line.waiting > line.parked:
                async with self._quarantine.guard(
                    batch.batch_id, "its rollouts that wait for a judge cannot be parked"
                ):
                    await self._judging.park(batch.batch_id, judge, batch.judge_timeout_s)
        there = [batch for batch, line in lines if line.waiting]
        return await self._over(judge, there, room) + await self._probe(breaker, there)

    async def release(self, judge: str, lines: JudgeQueues) -> None:
        """Release all rollouts of a judge that is no longer parked."""
        self._look_again_at.pop(judge, None)
        for batch, line in lines:
            if line.parked:
                async with self._quarantine.guard(batch.batch_id, "its rollouts parked for a judge cannot be released"):
                    await self._judging.release(batch.batch_id, judge)

    async def probe_soon(self, parked: Mapping[str, Breaker]) -> None:
        """Allow another probe of these judges: a lost job may have been a probe."""
        for breaker in parked.values():
            await self._breakers.probe_soon(breaker.key)

    async def _over(self, judge: str, batches: Sequence[ActiveBatch], room: int) -> list[JudgeJob]:
        """Return the rollouts whose judge's deadline has passed, as many as there is room for."""
        jobs = []
        for batch in batches:
            taken: list[tuple[str, str]] = []
            async with self._quarantine.guard(batch.batch_id, "its rollouts parked for a judge cannot be ended"):
                taken = await self._judging.take_over(batch.batch_id, judge, room) if room > 0 else []
            room -= len(taken)
            for at in range(0, len(taken), self._slice_size):
                members = taken[at : at + self._slice_size]
                jobs.append(JudgeJob(batch_id=batch.batch_id, judge=judge, members=members))
        return jobs

    async def _probe(self, breaker: Breaker, batches: Sequence[ActiveBatch]) -> list[JudgeJob]:
        """Return one rollout of any of these batches."""
        key = breaker.key
        if not batches or breaker.next_probe_at > await self._store.now_ms():
            return []
        if not await self._breakers.may_probe(key):
            return []
        for batch in random.sample(batches, len(batches)):
            probed: list[tuple[str, str]] = []
            async with self._quarantine.guard(batch.batch_id, "none of its rollouts can be sent as a probe"):
                probed = await self._judging.probe(batch.batch_id, key.name, seed=random.randrange(2**31))
            for member, token in probed:
                say_probed(key, batch.batch_id, member)
                return [JudgeJob(batch_id=batch.batch_id, judge=key.name, members=[(member, token)], probe=key)]
        await self._breakers.probe_soon(key)
        return []
