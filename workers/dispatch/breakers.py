"""Rollouts that the dispatcher parks because their policy or environment keeps failing; it sends a probe now and then.

A policy's breaker parks whole batches; an environment's breaker parks only the environment's rows of a batch.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Sequence
from typing import Protocol

from gym.config import Settings
from gym.state.ledger.breakers import Breaker, BreakerKey, BreakerKind, Breakers, open_names, parked_field
from gym.state.ledger.cancellation import StopCause
from gym.state.ledger.rollouts import Rollouts, TakenRollout
from gym.state.redis.store import Store
from workers.dispatch.publisher import Job
from workers.dispatch.quarantine import Quarantine

SWEEP_S = 30.0
LOOK_AGAIN_S = 1.0
_LOG = logging.getLogger(__name__)


class ParkedBatch(Protocol):
    """The properties of a batch that are read here."""

    batch_id: str
    policy: BreakerKey
    parked: int
    queued: int
    dispatched: int
    stopping: StopCause | None


class DispatchBreakers:
    """One per dispatcher; `refresh` comes first in each tick."""

    def __init__(self, settings: Settings, store: Store, quarantine: Quarantine | None = None) -> None:
        self._quarantine = quarantine or Quarantine(store)
        self._store = store
        self._breakers = Breakers(store, settings.breakers)
        self._rollouts = Rollouts(store)
        self._open: list[Breaker] = []
        self._sweep_at = 0.0
        self._probe_at = 0.0

    @property
    def environments(self) -> list[str]:
        """The environments whose rollouts are parked."""
        return open_names(self._open, BreakerKind.ENVIRONMENT)

    @property
    def judges(self) -> dict[str, Breaker]:
        """The judges whose queues are parked; `workers.dispatch.judge_breakers` handles those."""
        return {breaker.key.name: breaker for breaker in self._open if breaker.key.kind is BreakerKind.JUDGE}

    @property
    def fields(self) -> list[str]:
        """The names of the batch counters to read."""
        return [parked_field(name) for name in self.environments]

    def holds(self, policy: BreakerKey) -> bool:
        """Return whether every rollout of a policy is parked."""
        return any(breaker.key == policy for breaker in self._open)

    async def refresh(self) -> None:
        """Read the open breakers."""
        known = await self._breakers.all()
        self._open = [breaker for breaker in known if breaker.open]
        if time.monotonic() >= self._sweep_at:
            self._sweep_at = time.monotonic() + SWEEP_S
            await self._breakers.sweep()

    async def probes(self, batches: Sequence[ParkedBatch]) -> list[Job]:
        """Return a job for each breaker whose pause is over and that has parked rollouts."""
        if not self._open or time.monotonic() < self._probe_at:
            return []
        now = await self._store.now_ms()
        due = [breaker for breaker in self._open if breaker.next_probe_at <= now]
        self._probe_at = time.monotonic() + LOOK_AGAIN_S * bool(due)
        jobs = []
        for breaker in due:
            held = [batch for batch in batches if batch.stopping is None and self._waits_for(breaker.key, batch)]
            if held and await self._breakers.may_probe(breaker.key):
                jobs += await self._probe(breaker.key, held)
        return jobs

    def _waits_for(self, key: BreakerKey, batch: ParkedBatch) -> bool:
        if key.kind is BreakerKind.POLICY:
            return batch.policy == key and batch.queued > batch.dispatched
        return key.kind is BreakerKind.ENVIRONMENT and batch.parked > 0

    async def _probe(self, key: BreakerKey, held: list[ParkedBatch]) -> list[Job]:
        """Return one rollout of these batches, from a batch whose policy works if possible."""
        environment = key.name if key.kind is BreakerKind.ENVIRONMENT else None
        random.shuffle(held)
        if environment is not None:
            held.sort(key=lambda batch: self.holds(batch.policy))
        for batch in held:
            probed: list[TakenRollout] = []
            async with self._quarantine.guard(batch.batch_id, "none of its rollouts can be sent as a probe"):
                probed = await self._rollouts.probe(
                    batch.batch_id,
                    environment=environment,
                    seed=random.randrange(2**31),
                    parked=self.environments,
                )
            for taken in probed:
                say_probed(key, batch.batch_id, taken.member)
                member = [(taken.member, taken.attempt)]
                return [Job(batch_id=batch.batch_id, environment=taken.environment, members=member, probe=key)]
        await self._breakers.probe_soon(key)
        return []


def say_probed(key: BreakerKey, batch_id: str, member: str) -> None:
    """Log that a rollout is let through."""
    _LOG.info("%s %s is probed with %s:%s", key.kind, key.name, batch_id, member, extra={"action": "breaker_probe"})
