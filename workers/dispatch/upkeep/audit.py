"""The ledger audit: compares the holdings of active batches, raises alarms, and queues lost rollouts again.

Bounded: a fixed number of batches in one round, and of entries of each. `workers.dispatch.upkeep.findings` decides
whether something is wrong.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from gym.config import Settings
from gym.state.alarms import Alarm, AlarmKind, AlarmName, Alarms
from gym.state.assignments import Assignments
from gym.state.leases import WorkerStatus
from gym.state.ledger.batches import activate
from gym.state.ledger.judging import Judging
from gym.state.ledger.rollouts import Rollouts
from gym.state.ledger.submission import unannounced
from gym.state.redis.driver import ResponseError
from gym.state.redis.eviction import NEEDED, explain
from gym.state.redis.store import Store
from gym.state.redis.unreadable import reason
from gym.state.repair.audit import Audits, Holdings
from gym.state.repair.recount import recount
from workers.dispatch.batch import ActiveBatch
from workers.dispatch.quarantine import Quarantine
from workers.dispatch.upkeep.findings import BatchContext, BatchProgress, Finding, OpenFindings, Remedy, examine
from workers.dispatch.upkeep.inspection import Inspection, LiveRepair

INTERVAL_S = 2.0
MOST_BATCHES = 50
REDIS_INTERVAL_S = 15.0
REMEDY_AGAIN_S = 30.0
ANNOUNCED_WITHIN_MS = 10_000
SHOWN_ROLLOUTS = 20
_OTHERS = (AlarmKind.UNREADABLE_BATCH, AlarmKind.UNREADABLE_RESULT)  # raised and cleared elsewhere
_LOG = logging.getLogger(__name__)


class Auditor:
    """The auditor of one dispatcher; it works while that leads."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        *,
        clock: Callable[[], float] = time.monotonic,
        quarantine: Quarantine | None = None,
    ) -> None:
        self._clock = clock
        self._quarantine = quarantine or Quarantine(store, clock=clock)
        self._repair = LiveRepair(store)
        self._inspection = Inspection(store)
        self._settings = settings
        self._store = store
        self._audits = Audits(store)
        self._alarms = Alarms(store)
        self._rollouts = Rollouts(store)
        self._judging = Judging(store)
        self._assignments = Assignments(store)
        self._findings = OpenFindings()
        self._progress: dict[str, BatchProgress] = {}
        self._cursors: dict[str, str] = {}
        self._standing: set[AlarmName] | None = None
        self._due_at = self._redis_due_at = -math.inf
        self._next = 0
        self._remedy_again_at: dict[AlarmName, float] = {}
        self._announced_until = 0

    async def run_when_due(self, batches: dict[str, ActiveBatch], workers: Sequence[WorkerStatus]) -> None:
        """Audit the next batches, if due. Raises redis-py's errors."""
        now = self._clock()
        if now < self._due_at:
            return
        self._due_at = now + INTERVAL_S
        if self._standing is None:
            self._standing = set(await self._alarms.standing())
        await self._forget(batches)
        names = list(batches)
        self._next = self._next if self._next < len(names) else 0
        chosen = names[self._next : self._next + MOST_BATCHES]
        self._next += len(chosen)
        fetching = [worker for worker in workers if not worker.info.get("alone")]
        free = sum(max(0, worker.slots - worker.count("taken")) for worker in fetching)
        known = {worker.worker for worker in workers}
        for held in await self._audits.count({name: self._cursors.get(name, "0") for name in chosen}):
            self._cursors[held.batch_id] = held.cursor
            around = BatchContext(
                workers=known,
                free_slots=free,
                rollout_timeout_s=batches[held.batch_id].rollout_timeout_s,
                lease_ttl_s=self._settings.worker.lease_ttl_s,
                no_progress_s=self._settings.dispatcher.no_progress_s,
                held=batches[held.batch_id].held,
            )
            async with self._quarantine.guard(held.batch_id, "it cannot be audited"):
                await self._judge(batches[held.batch_id], held, around, now)
        for batch_id, error in self._audits.unreadable.items():
            await self._quarantine.put_aside(batch_id, f"it cannot be audited: {reason(error)}")
        await self._announce()
        if now >= self._redis_due_at:
            self._redis_due_at = now + REDIS_INTERVAL_S
            await self._look_at_redis()

    async def _judge(self, batch: ActiveBatch, held: Holdings, around: BatchContext, now: float) -> None:
        progress = self._progress.setdefault(held.batch_id, BatchProgress())
        findings = examine(held, around) + progress.look(held, around, now)
        complete = held.states is not None
        for finding in self._findings.confirm(held.batch_id, findings, now=now, complete=complete):
            if now >= self._remedy_again_at.get(finding.alarm.name, now):
                self._remedy_again_at[finding.alarm.name] = now + REMEDY_AGAIN_S
                await self._raise(await self._remedy(batch, finding))
        for alarm in await self._repair.look(held, now):
            await self._raise(alarm)
        suspected = self._findings.standing(held.batch_id) | self._repair.standing(now)
        await self._settle(held.batch_id, suspected)

    async def _remedy(self, batch: ActiveBatch, finding: Finding) -> Alarm:
        """Act on a finding, and return its alarm with the action taken."""
        remedies = {
            Remedy.ADOPT: self._adopt,
            Remedy.RECOUNT: self._recount,
            Remedy.RECOVER: self._recover,
            Remedy.TAKE_BACK: self._take_back,
            Remedy.RESEND: self._resend,
        }
        return await remedies[finding.remedy](batch, finding.alarm)

    async def _adopt(self, batch: ActiveBatch, alarm: Alarm) -> Alarm:
        search = await self._audits.adopt(batch.batch_id)
        if search is None:
            return replace(alarm, message=f"{alarm.message}; too much is under way to look for them yet")
        rollouts = tuple(f"{batch.batch_id}:{member}" for member in search.members[:SHOWN_ROLLOUTS])
        done = f"{len(search.members)} were queued again" + (", the search goes on" if search.goes_on_at else "")
        return replace(alarm, rollouts=rollouts, message=f"{alarm.message}; {done}")

    async def _recount(self, batch: ActiveBatch, alarm: Alarm) -> Alarm:
        done = await recount(self._store, batch.batch_id)
        return replace(alarm, message=f"{alarm.message}; {'counted anew' if done else 'to be counted anew later'}")

    async def _recover(self, batch: ActiveBatch, alarm: Alarm) -> Alarm:
        recovered = await self._rollouts.recover(
            batch.batch_id,
            overdue_ms=0,
            max_attempts=batch.max_attempts,
            dead_workers=[alarm.worker],
            suspect_after=self._settings.dispatcher.suspect_after,
        )
        judged_again, _ = await self._judging.recover(batch.batch_id, overdue_ms=0, dead_workers=[alarm.worker])
        done = f"{recovered.requeued} were queued again, {recovered.failed} had no attempt left"
        if judged_again:
            done = f"{done}, {judged_again} wait for a judge again"
        return replace(alarm, message=f"{alarm.message}; {done}")

    async def _take_back(self, batch: ActiveBatch, alarm: Alarm) -> Alarm:
        """Queue rollouts again that a worker with a lease should have ended; it stops them if it can."""
        limit_ms = int((batch.rollout_timeout_s + self._settings.dispatcher.no_progress_s) * 1000)
        latest = await self._store.now_ms() - limit_ms
        assigned = await self._assignments.of_batches([batch.batch_id])
        late = [each for each in assigned if each.worker == alarm.worker and each.since < latest]
        message = f"worker {alarm.worker} did not end it within its limits"
        calls = self._assignments.take_back_calls(late, max_attempts=batch.max_attempts, message=message)
        answers = [await self._store.run(call.script, call.keys, call.args) for call in calls]
        again, failed = sum(answer[0] for answer in answers), sum(answer[1] for answer in answers)
        return replace(alarm, message=f"{alarm.message}; {again} were queued again, {failed} had no attempt left")

    async def _resend(self, batch: ActiveBatch, alarm: Alarm) -> Alarm:
        """Send rollouts again; if the first job was not lost, only one of the two jobs claims them."""
        now = await self._store.now_ms()
        recovered = await self._rollouts.recover(
            batch.batch_id, overdue_ms=now, max_attempts=batch.max_attempts, dead_workers=[]
        )
        _, asked = await self._judging.recover(batch.batch_id, overdue_ms=now, dead_workers=[])
        return replace(alarm, message=f"{alarm.message}; {recovered.resent + asked} are sent again")

    async def _raise(self, alarm: Alarm) -> None:
        if self._standing is not None and alarm.name in self._standing:
            return
        if await self._alarms.raise_alarm(alarm):
            _LOG.error(
                "%s",
                alarm.message,
                extra={
                    "action": alarm.kind.value,
                    "batch_id": alarm.batch_id,
                    "worker": alarm.worker,
                    "rollouts": list(alarm.rollouts),
                },
            )
        if self._standing is not None:
            self._standing.add(alarm.name)

    async def _settle(self, batch_id: str, suspected: set[AlarmName]) -> None:
        """Clear the alarms of a batch that are no longer suspected."""
        for name in [name for name in self._standing or () if name.batch_id == batch_id]:
            if name not in suspected and name.kind not in _OTHERS:
                await self._clear(name)

    async def _clear(self, name: AlarmName) -> None:
        await self._alarms.clear(name)
        self._remedy_again_at.pop(name, None)
        if self._standing is not None:
            self._standing.discard(name)
        _LOG.info("alarm cleared: %s", name, extra={"action": "alarm_cleared"})

    async def _forget(self, batches: dict[str, ActiveBatch]) -> None:
        self._findings.forget({*batches, ""})
        self._progress = {name: progress for name, progress in self._progress.items() if name in batches}
        self._cursors = {name: cursor for name, cursor in self._cursors.items() if name in batches}
        for name in list(self._standing or ()):
            if name.batch_id not in {*batches, ""} and name.kind not in _OTHERS:
                await self._clear(name)

    async def _announce(self) -> None:
        """Announce batches whose publishing process died before it announced them."""
        until = await self._store.now_ms() - ANNOUNCED_WITHIN_MS
        for batch_id in await unannounced(self._store, self._announced_until, until):
            await activate(self._store, batch_id)
            _LOG.error("batch %s was published and in no index", batch_id, extra={"action": AlarmKind.NO_OWNER.value})
            alarm = Alarm(kind=AlarmKind.NO_OWNER, batch_id=batch_id, message="published, and in no index until now")
            await self._alarms.raise_alarm(alarm)
            await self._alarms.clear(alarm.name)
        self._announced_until = until

    async def _look_at_redis(self) -> None:
        """Raise alarms if Redis has become full, drops keys, or holds unreadable records."""
        found = [*await self._memory(), *await self._inspection.alarms()]
        for alarm in found:
            await self._raise(alarm)
        await self._settle("", {alarm.name for alarm in found})

    async def _memory(self) -> list[Alarm]:
        """Return alarms about Redis's memory; none if it refuses to report on that."""
        try:
            memory = await self._store.redis.info("memory")
        except ResponseError:
            return []
        policy = str(memory.get("maxmemory_policy", NEEDED))
        most = int(memory.get("maxmemory", 0))
        used = int(memory.get("used_memory", 0))
        found = []
        if policy != NEEDED:
            found.append(Alarm(kind=AlarmKind.REDIS_EVICTS, message=explain(policy)))
        if most and used >= most:
            message = f"Redis is full: {used} of {most} bytes; submissions are refused and nothing new is started"
            found.append(Alarm(kind=AlarmKind.REDIS_FULL, message=message))
        return found
