"""The dispatcher's part in judging: sends rollouts to the judge workers, and takes back what got lost there.

Invariant: of each judge at most its share is with the judge workers, so that one which is slow or away fills its own
places and never another's. The rest waits in Redis, by the time when it may be tried again. Of a judge that is parked
nothing goes but a probe now and then, and what has waited for a whole `judge_timeout_s`, for its last try.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Collection, Iterable, Mapping, Sequence

from gym.config import Settings
from gym.state.breakers import Breaker, BreakerKey, Breakers
from gym.state.judging import Judging
from gym.state.leases import WorkerStatus
from gym.state.store import Store
from workers.active import Batch
from workers.app import judging_queue_name
from workers.publisher import JudgeJob, Publisher
from workers.schedule import Waiting, plan

LOOKS = 6  # for lost jobs, within the time after which one is sent again; each reads all that is judged
_LOG = logging.getLogger(__name__)


class JudgeDispatch:
    """Connects when the first rollout waits for a judge: a farm without judges pays nothing."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings = settings
        self._judging = Judging(store)
        self._breakers = Breakers(store, settings.breakers)
        self._publisher: Publisher | None = None
        self._per_judge = 0
        self._virtual_times: dict[str, dict[str, float]] = {}
        self._server_ahead_ms = 0
        self._look_again_at = 0.0

    def close(self) -> None:
        """Give the connections back."""
        if self._publisher is not None:
            self._publisher.close()

    async def fill(self, batches: Iterable[Batch], parked: Mapping[str, Breaker]) -> None:
        """Send as many on their way as the judge workers have room for; `parked` are judges that keep failing."""
        judged = [batch for batch in batches if batch.judging]
        if not judged or not self._per_judge:
            return
        load = await self._judging.load([batch.batch_id for batch in judged])
        jobs: list[JudgeJob] = []
        sent_ms = self._server_ms()  # before taking, as for the workers
        for judge in sorted({judge for judges in load.values() for judge in judges}):
            if judge in parked:
                waits = [batch for batch in judged if load[batch.batch_id].get(judge, (0, 0))[0]]
                jobs += await self._of_parked(parked[judge], waits)
                continue
            waiting = [_waiting(batch, load[batch.batch_id].get(judge, (0, 0))[0]) for batch in judged]
            asked = sum(judges.get(judge, (0, 0))[1] for judges in load.values())
            shares = plan(
                waiting,
                room=self._per_judge - asked,
                slice_size=self._settings.dispatcher.slice_size,
                virtual_times=self._virtual_times.get(judge, {}),
            )
            self._virtual_times[judge] = shares.virtual_times
            for batch_id, wanted in shares.takes:
                taken = await self._judging.take(batch_id, judge, wanted)
                if taken:
                    jobs.append(JudgeJob(batch_id=batch_id, judge=judge, members=taken))
        if jobs:
            await asyncio.to_thread(self._line().send, jobs, sent_ms)

    def _server_ms(self) -> int:
        return time.monotonic_ns() // 1_000_000 + self._server_ahead_ms

    async def _of_parked(self, breaker: Breaker, batches: list[Batch]) -> list[JudgeJob]:
        """What may go although its judge is parked."""
        jobs: list[JudgeJob] = []
        judge = breaker.key.name
        for batch in batches:
            most = self._settings.dispatcher.slice_size
            overdue = await self._judging.take(batch.batch_id, judge, most, overdue_s=batch.judge_timeout_s)
            if overdue:
                jobs.append(JudgeJob(batch_id=batch.batch_id, judge=judge, members=overdue, last=True))
        if batches and breaker.next_probe_at <= self._server_ms():
            jobs += await self._probe(breaker.key, batches)
        return jobs

    async def _probe(self, key: BreakerKey, batches: list[Batch]) -> list[JudgeJob]:
        """One rollout of any of these batches, where none is under way."""
        if not await self._breakers.may_probe(key):
            return []
        for batch in random.sample(batches, len(batches)):
            taken = await self._judging.take(batch.batch_id, key.name, 1)
            if taken:
                extra = {"action": "breaker_probe"}
                _LOG.info("judge %s is probed with %s:%s", key.name, batch.batch_id, taken[0][0], extra=extra)
                return [JudgeJob(batch_id=batch.batch_id, judge=key.name, members=taken, probe=True)]
        await self._breakers.probe_soon(key)
        return []

    async def look_after(
        self, batches: Collection[Batch], workers: Sequence[WorkerStatus], now: int, dead: Sequence[str]
    ) -> None:
        """Called once a second: count the judge workers' places, take back what dead ones had and what got lost."""
        judge_workers = [worker for worker in workers if worker.role == "judge"]
        self._per_judge = sum(int(w.info.get("per_judge", 0)) for w in judge_workers if w.lease_ends_in_s > 0)
        self._server_ahead_ms = now - time.monotonic_ns() // 1_000_000
        judged = [batch for batch in batches if batch.judging]
        if not judged or not (dead or time.monotonic() >= self._look_again_at):
            return
        self._look_again_at = time.monotonic() + self._settings.dispatcher.resend_after_s / LOOKS
        overdue_ms = await asyncio.to_thread(self._overdue_before, now)
        for batch in judged:
            lost, resent = await self._judging.recover(batch.batch_id, overdue_ms=overdue_ms, dead_workers=dead)
            if lost or resent:
                _LOG.warning(
                    "batch %s: %d of dead judge workers wait again, %d jobs sent again",
                    batch.batch_id,
                    lost,
                    resent,
                    extra={"action": "judging_recovered"},
                )

    def _line(self) -> Publisher:
        if self._publisher is None:
            self._publisher = Publisher(self._settings, judging_queue_name(self._settings.redis.prefix))
        return self._publisher

    def _overdue_before(self, now: int) -> int:
        """As the dispatcher's own, of the judges' queue."""
        limit = now - int(self._settings.dispatcher.resend_after_s * 1000)
        oldest = self._line().oldest_waiting_ms()
        return limit if oldest is None else min(limit, oldest)


def _waiting(batch: Batch, backlog: int) -> Waiting:
    return Waiting(
        batch_id=batch.batch_id,
        run=batch.run,
        priority=batch.priority,
        weight=batch.weight,
        created_at=batch.created_at,
        backlog=backlog,
    )
