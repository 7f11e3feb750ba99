"""The dispatcher's side of comparing Redis's assignments with the workers' holdings (`gym.state.assignments`)."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence

from gym.config import Settings
from gym.state.assignments import Assignment, Assignments, SessionAssignment
from gym.state.leases import WorkerStatus
from gym.state.redis.store import Store
from gym.state.session_records import Sessions
from workers.dispatch.batch import ActiveBatch
from workers.process.unheld import compare_every_s

_LOG = logging.getLogger(__name__)


class Reconciliation:
    """The reconciliation of one dispatcher; it works while that leads."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._every_s = compare_every_s(settings.worker.lease_ttl_s)
        self._assignments = Assignments(store)
        self._sessions = Sessions(store)
        self._due_at = 0.0
        self._orphans: set[str] = set()

    async def run_when_due(self, batches: Iterable[ActiveBatch], workers: Sequence[WorkerStatus]) -> None:
        """Send the live workers their assignments, if due. Raises redis-py's errors.

        Assignments to a worker without a lease are left to `workers.dispatch.upkeep.audit`.
        """
        now = time.monotonic()
        if now < self._due_at:
            return
        self._due_at = now + self._every_s
        alive = {worker.worker for worker in workers if worker.lease_ends_in_s > 0}
        rollouts: dict[str, list[Assignment]] = {}
        at_work = [batch.batch_id for batch in batches if batch.running or batch.judging]
        for each in await self._assignments.of_batches(at_work):
            if each.worker in alive:
                rollouts.setdefault(each.worker, []).append(each)
        sessions: dict[str, list[SessionAssignment]] = {}
        for session in await self._assignments.of_sessions():
            sessions.setdefault(session.worker, []).append(session)
        known = {worker.worker for worker in workers}
        await self._strike([each for worker, own in sessions.items() if worker not in known for each in own])
        await self._assignments.tell(rollouts, {name: own for name, own in sessions.items() if name in alive})

    async def _strike(self, orphans: Sequence[SessionAssignment]) -> None:
        """Strike sessions off that have no worker at two looks: it has ended."""
        gone = [each for each in orphans if each.session_id in self._orphans]
        self._orphans = {each.session_id for each in orphans}
        if gone:
            await self._sessions.strike(gone)
            _LOG.warning("%d sessions were with workers that are gone", len(gone), extra={"action": "sessions_lost"})
