"""Housekeeping of the leading dispatcher, about once a second: dead workers, lost jobs, batches that end.

Invariant: every step is a script, or a command that may be repeated (idempotent). So it does not matter how often one
is taken, by which dispatcher, or whether its predecessor finished it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time

from gym.config import Settings
from gym.state.leases import Leases
from gym.state.ledger.cancellation import StopCause, cancel
from gym.state.ledger.rollouts import Rollouts
from gym.state.redis.store import Store
from workers.dispatch.batch import ActiveBatch
from workers.dispatch.judging import LOOKS, JudgeDispatch
from workers.dispatch.publisher import Publisher
from workers.dispatch.quarantine import Quarantine
from workers.dispatch.upkeep.audit import Auditor
from workers.dispatch.upkeep.reconciliation import Reconciliation
from workers.dispatch.upkeep.retention import Retention

INTERVAL_S = 1.0
NO_WORKERS_S = 0.1
_LOG = logging.getLogger(__name__)


class Housekeeping:
    """The housekeeping of one dispatcher. `slots` and `workers` count the live ones, as of the last look."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        publisher: Publisher,
        judges: JudgeDispatch,
        quarantine: Quarantine | None = None,
    ) -> None:
        self._quarantine = quarantine or Quarantine(store)
        self.slots = 0
        self.workers = 0
        self._settings = settings
        self._store = store
        self._rollouts = Rollouts(store)
        self._leases = Leases(store)
        self._publisher = publisher
        self._judges = judges
        self._retention = Retention(settings, store, self._quarantine)
        self._auditor = Auditor(settings, store, quarantine=self._quarantine)
        self._reconciliation = Reconciliation(settings, store)
        self._due_at = 0.0
        self._looked_at = -math.inf
        self._resend_look_at = 0.0
        self._bury_from = 0.0
        self._server_ahead_ms = 0  # Redis's clock minus our steady clock

    def take_over(self) -> None:
        """Forget what was seen when this dispatcher led before."""
        self._auditor = Auditor(self._settings, self._store, quarantine=self._quarantine)
        self._looked_at = -math.inf

    def server_ms(self) -> int:
        """Return the time of Redis's clock, as far as it is known here."""
        return time.monotonic_ns() // 1_000_000 + self._server_ahead_ms

    async def run_when_due(self, batches: dict[str, ActiveBatch]) -> None:
        """Look after the active batches, if due; those that are over are taken out."""
        if time.monotonic() < self._due_at:
            return
        await self._run(batches)
        # a farm that has just started need not wait until its workers are noticed
        self._due_at = time.monotonic() + (INTERVAL_S if self.slots else NO_WORKERS_S)

    async def _run(self, batches: dict[str, ActiveBatch]) -> None:
        workers = await self._leases.workers()
        alive = [worker for worker in workers if worker.lease_ends_in_s > 0]
        dead = [worker.worker for worker in workers if worker.lease_ends_in_s <= 0]
        if not self._may_bury():
            dead = []
        self.slots = sum(worker.slots for worker in alive)
        self.workers = sum(worker.role == "worker" for worker in alive)
        now = await self._store.now_ms()
        self._server_ahead_ms = now - time.monotonic_ns() // 1_000_000
        overdue_ms = 0
        if any(batch.dispatched for batch in batches.values()) and time.monotonic() >= self._resend_look_at:
            self._resend_look_at = time.monotonic() + self._settings.dispatcher.resend_after_s / LOOKS
            overdue_ms = await asyncio.to_thread(self._overdue_before, now)
        for batch in list(batches.values()):
            if batch.ended:
                del batches[batch.batch_id]
                await self.retire(batch.batch_id, batch.created_at)
            else:
                async with self._quarantine.guard(batch.batch_id, "it cannot be looked after"):
                    await self._look_after(batch, now, overdue_ms, dead)
        await self._judges.look_after(batches.values(), workers, now, dead)
        await self._reconciliation.run_when_due(batches.values(), workers)
        await self._auditor.run_when_due(batches, workers)
        await self._retention.run_when_due()
        for worker in dead:
            _LOG.warning("worker %s is gone", worker, extra={"action": "worker_lost"})
            await self._leases.forget_worker(worker)

    async def retire(self, batch_id: str, created_at: int) -> None:
        """Take a batch that has ended from the active ones."""
        async with self._quarantine.guard(batch_id, "it has ended and cannot be retired"):
            await self._retention.retire(batch_id, created_at)

    def _may_bury(self) -> bool:
        """Return False after a gap between looks: Redis may have been away, and live workers get time to renew."""
        now = time.monotonic()
        renewed_within_s = self._settings.worker.lease_ttl_s / 3 + INTERVAL_S
        if now - self._looked_at > renewed_within_s:
            self._bury_from = now + renewed_within_s
        self._looked_at = now
        return now >= self._bury_from

    def _overdue_before(self, now: int) -> int:
        """Return the time before which unclaimed jobs are lost: no job that old waits in the broker."""
        limit = now - int(self._settings.dispatcher.resend_after_s * 1000)
        oldest = self._publisher.oldest_waiting_ms()
        return limit if oldest is None else min(limit, oldest)

    async def _look_after(self, batch: ActiveBatch, now: int, overdue_ms: int, dead: list[str]) -> None:
        overdue = batch.deadline_at is not None and now > batch.deadline_at
        if overdue and batch.stopping is None:
            await cancel(self._store, batch.batch_id, "batch", "*", cause=StopCause.DEADLINE)
        if dead or (overdue_ms and batch.dispatched):
            recovered = await self._rollouts.recover(
                batch.batch_id,
                overdue_ms=overdue_ms,
                max_attempts=batch.max_attempts,
                dead_workers=dead,
                suspect_after=self._settings.dispatcher.suspect_after,
            )
            if recovered.requeued or recovered.failed or recovered.resent:
                _LOG.warning(
                    "batch %s: %d of dead workers queued again, %d failed, %d jobs sent again",
                    batch.batch_id,
                    recovered.requeued,
                    recovered.failed,
                    recovered.resent,
                    extra={"action": "recovered"},
                )
