"""The dispatcher's part in judging: sends rollouts to the judge workers, and takes lost ones back.

Invariant: at most a judge's share of rollouts is with the judge workers, so a slow or unreachable judge fills only its
own slots. The rest waits in Redis, ordered by the time when it may be tried again. Rollouts of a judge that keeps
failing are left to `workers.dispatch.judge_breakers`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Iterable, Sequence

from gym.config import Settings
from gym.state.leases import WorkerStatus
from gym.state.ledger.judging import JudgeQueue, Judging
from gym.state.redis.store import Store
from workers.dispatch.batch import ActiveBatch
from workers.dispatch.breakers import DispatchBreakers
from workers.dispatch.judge_breakers import JudgeDispatchBreakers
from workers.dispatch.publisher import JudgeJob, Publisher
from workers.dispatch.quarantine import Quarantine
from workers.dispatch.schedule import WaitingBatch, plan
from workers.process.app import judging_queue_name

LOOKS = 6  # for lost jobs, within the time after which one is sent again; each reads all that is judged
_LOG = logging.getLogger(__name__)


class JudgeDispatch:
    """The judging part of one dispatcher; it connects when the first rollout waits for a judge."""

    def __init__(
        self, settings: Settings, store: Store, breakers: DispatchBreakers, quarantine: Quarantine | None = None
    ) -> None:
        self._quarantine = quarantine or Quarantine(store)
        self._settings = settings
        self._judging = Judging(store)
        self._breakers = breakers
        self._parked = JudgeDispatchBreakers(settings, store, self._quarantine)
        self._publisher: Publisher | None = None
        self._per_judge = 0
        self._virtual_times: dict[str, dict[str, float]] = {}
        self._server_ahead_ms = 0
        self._look_again_at = 0.0

    def close(self) -> None:
        """Close the connections."""
        if self._publisher is not None:
            self._publisher.close()

    async def fill(self, batches: Iterable[ActiveBatch]) -> None:
        """Send as many rollouts as the judge workers have room for."""
        judged = [batch for batch in batches if batch.judging]
        if not judged or not self._per_judge:
            return
        load = await self._judging.load([batch.batch_id for batch in judged])
        judged = [batch for batch in judged if batch.batch_id in load]
        parked = self._breakers.judges
        jobs: list[JudgeJob] = []
        sent_ms = self._server_ms()  # before taking, as for the workers
        for judge in sorted({judge for judges in load.values() for judge in judges}):
            lines = [(batch, load[batch.batch_id].get(judge, JudgeQueue())) for batch in judged]
            room = self._per_judge - sum(line.asked for _, line in lines)
            if judge in parked:
                jobs += await self._parked.jobs(parked[judge], lines, room)
                continue
            await self._parked.release(judge, lines)
            shares = plan(
                [_waiting(batch, line.waiting) for batch, line in lines],
                room=room,
                slice_size=self._settings.dispatcher.slice_size,
                virtual_times=self._virtual_times.get(judge, {}),
            )
            self._virtual_times[judge] = shares.virtual_times
            for batch_id, wanted in shares.takes:
                taken: list[tuple[str, str]] = []
                async with self._quarantine.guard(batch_id, "its rollouts that wait for a judge cannot be sent"):
                    taken = await self._judging.take(batch_id, judge, wanted)
                if taken:
                    jobs.append(JudgeJob(batch_id=batch_id, judge=judge, members=taken))
        if jobs:
            await asyncio.to_thread(self._line().send, jobs, sent_ms)

    def _server_ms(self) -> int:
        return time.monotonic_ns() // 1_000_000 + self._server_ahead_ms

    async def look_after(
        self, batches: Collection[ActiveBatch], workers: Sequence[WorkerStatus], now: int, dead: Sequence[str]
    ) -> None:
        """Count the judge workers' slots; recover the rollouts of dead workers and lost jobs. Called once a second."""
        judge_workers = [worker for worker in workers if worker.role == "judge"]
        self._per_judge = sum(w.count("per_judge") for w in judge_workers if w.lease_ends_in_s > 0)
        self._server_ahead_ms = now - time.monotonic_ns() // 1_000_000
        judged = [batch for batch in batches if batch.judging]
        if not judged or not (dead or time.monotonic() >= self._look_again_at):
            return
        self._look_again_at = time.monotonic() + self._settings.dispatcher.resend_after_s / LOOKS
        overdue_ms = await asyncio.to_thread(self._overdue_before, now)
        for batch in judged:
            lost = resent = 0
            async with self._quarantine.guard(batch.batch_id, "its rollouts with judge workers cannot be recovered"):
                lost, resent = await self._judging.recover(batch.batch_id, overdue_ms=overdue_ms, dead_workers=dead)
            if lost or resent:
                _LOG.warning(
                    "batch %s: %d of dead judge workers wait again, %d jobs sent again",
                    batch.batch_id,
                    lost,
                    resent,
                    extra={"action": "judging_recovered"},
                )
                await self._parked.probe_soon(self._breakers.judges)  # a probe may have been among them

    def _line(self) -> Publisher:
        if self._publisher is None:
            self._publisher = Publisher(self._settings, judging_queue_name(self._settings.redis.prefix))
        return self._publisher

    def _overdue_before(self, now: int) -> int:
        limit = now - int(self._settings.dispatcher.resend_after_s * 1000)
        oldest = self._line().oldest_waiting_ms()
        return limit if oldest is None else min(limit, oldest)


def _waiting(batch: ActiveBatch, backlog: int) -> WaitingBatch:
    return WaitingBatch(
        batch_id=batch.batch_id,
        run=batch.run,
        priority=batch.priority,
        weight=batch.weight,
        created_at=batch.created_at,
        backlog=backlog,
    )
