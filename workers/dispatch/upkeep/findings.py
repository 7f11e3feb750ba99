"""Findings about the holdings of a batch, and their age. Pure: holdings and a clock in, findings out.

Invariant: a finding is reported once it was seen twice and has lasted as long as its cause may take to pass by
itself. So a change that is under way is never an alarm.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from gym.state.alarms import Alarm, AlarmKind, AlarmName
from gym.state.repair.audit import Holdings

UNSEEN_S = 30.0  # a suspicion is forgotten after so long without a look at this part of the batch


class Remedy(StrEnum):
    """An action of the dispatcher on a finding, beside the alarm."""

    ADOPT = "adopt"  # queue rollouts again that nothing holds
    RECOUNT = "recount"  # set the counters to the actual numbers
    RECOVER = "recover"  # take back the rollouts of a worker without a lease
    TAKE_BACK = "take_back"  # take back rollouts that a live worker should have ended
    RESEND = "resend"  # send rollouts again that stay in Celery for too long


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A fault, and the time that it has to last before it is believed."""

    alarm: Alarm
    remedy: Remedy
    lasts_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchContext:
    """The facts by which a batch is examined. `workers`: all registered ones, also those whose lease has just expired.

    `held`: its policy keeps failing, so all of it is parked, which is no lack of progress.
    """

    workers: Collection[str]
    free_slots: int
    rollout_timeout_s: float
    lease_ttl_s: float
    no_progress_s: float
    held: bool = False


def examine(held: Holdings, around: BatchContext) -> list[Finding]:
    """Return everything that looks wrong at this moment."""
    return [*_imbalances(held), *_lost(held), *_without_lease(held, around), *_stuck(held, around)]


def _imbalances(held: Holdings) -> list[Finding]:
    ledger, batch_id = held.ledger, held.batch_id
    wrong = []
    if not ledger.balanced:
        wrong.append(f"the states do not add up to submitted: {ledger.as_dict()}")
    counted = (held.dispatched, ledger.running, ledger.judging)
    if held.states is not None and held.states != counted:
        wrong.append(f"dispatched, running, judging are counted {counted} and there are {held.states}")
    elif held.live != sum(counted):
        wrong.append(f"dispatched, running, judging are counted {counted} and there are {held.live} in all")
    if held.done != ledger.ended:
        wrong.append(f"{ledger.ended} ended by the counters, {held.done} outcomes are there")
    if not wrong:
        return []
    # fewer live ones than the counters say: some may have been lost
    remedy = Remedy.ADOPT if held.live < sum(counted) else Remedy.RECOUNT
    alarm = Alarm(kind=AlarmKind.LEDGER_IMBALANCE, batch_id=batch_id, message=f"batch {batch_id}: {'; '.join(wrong)}")
    return [Finding(alarm=alarm, remedy=remedy)]


def _lost(held: Holdings) -> list[Finding]:
    """Find queued rollouts that are in no queue. A long backlog is not counted; losses show when it is shorter."""
    waiting = held.ledger.queued - held.dispatched
    if held.backlog_rollouts is None or held.backlog_rollouts + held.retries >= waiting:
        return []
    lines = held.backlog_rollouts + held.retries
    alarm = Alarm(
        kind=AlarmKind.NO_OWNER,
        batch_id=held.batch_id,
        message=f"batch {held.batch_id}: {waiting} rollouts are queued and {lines} are in line",
    )
    return [Finding(alarm=alarm, remedy=Remedy.ADOPT)]


def _without_lease(held: Holdings, around: BatchContext) -> list[Finding]:
    """Find rollouts of unregistered workers; a new or returning worker registers within one lease renewal."""
    found = []
    for owned in held.owners:
        if owned.worker not in around.workers:
            alarm = Alarm(
                kind=AlarmKind.NO_OWNER,
                batch_id=held.batch_id,
                worker=owned.worker,
                rollouts=(f"{held.batch_id}:{owned.member}",),
                message=f"batch {held.batch_id}: {owned.rollouts} rollouts are with worker {owned.worker}, "
                "which has no lease",
            )
            found.append(Finding(alarm=alarm, lasts_s=around.lease_ttl_s + 2.0, remedy=Remedy.RECOVER))
    return found


def _stuck(held: Holdings, around: BatchContext) -> list[Finding]:
    """Find rollouts that run beyond their limits, on a live worker that should have ended them."""
    found = []
    for owned in held.owners:
        ran_s = (held.now - owned.since) / 1000
        if owned.since and owned.worker in around.workers and ran_s > around.rollout_timeout_s + around.no_progress_s:
            rollout_id = f"{held.batch_id}:{owned.member}"
            alarm = Alarm(
                kind=AlarmKind.NO_PROGRESS,
                batch_id=held.batch_id,
                worker=owned.worker,
                rollouts=(rollout_id,),
                message=f"rollout {rollout_id} has run for {ran_s:.0f} s on worker {owned.worker}; "
                f"its limit is {around.rollout_timeout_s:g} s",
            )
            found.append(Finding(alarm=alarm, remedy=Remedy.TAKE_BACK))
    return found


@dataclass(slots=True)
class BatchProgress:
    """The time since which a batch has had work that could run, without progress."""

    marks: tuple[int, ...] = ()
    since: float = 0.0
    looked: float = 0.0

    def look(self, held: Holdings, around: BatchContext, now: float) -> list[Finding]:
        """Find a batch without claims and outcomes for too long, though rollouts are due and slots free.

        `now` is of any steady clock.
        """
        marks = (held.fence, held.ledger.running, held.ledger.judging, held.ledger.ended)
        due = held.backlog_entries + held.retries_due + held.dispatched
        could = not held.stopping and not around.held and around.free_slots > 0 and due > 0 and held.ledger.queued > 0
        unseen = now - self.looked > UNSEEN_S  # Redis or this process was away, which is another matter
        self.looked = now
        if marks != self.marks or not could or unseen:
            self.marks, self.since = marks, now
            return []
        if now - self.since < around.no_progress_s:
            return []
        alarm = Alarm(
            kind=AlarmKind.NO_PROGRESS,
            batch_id=held.batch_id,
            message=f"batch {held.batch_id}: {held.ledger.queued} rollouts are queued, {held.dispatched} of them in "
            f"Celery, {around.free_slots} slots are free, and nothing has moved for {now - self.since:.0f} s",
        )
        return [Finding(alarm=alarm, remedy=Remedy.RESEND)]


@dataclass(slots=True)
class _OpenFinding:
    first: float
    last: float
    seen: int = 1


@dataclass(slots=True)
class OpenFindings:
    """Memory of findings until they are believed or gone."""

    _known: dict[AlarmName, _OpenFinding] = field(default_factory=dict)

    def confirm(self, batch_id: str, findings: Sequence[Finding], *, now: float, complete: bool) -> list[Finding]:
        """Return findings that were seen before and have lasted; `complete`: all of the batch was looked at."""
        confirmed = []
        names = {finding.alarm.name for finding in findings}
        for name, known in list(self._known.items()):
            gone = complete or now - known.last > UNSEEN_S
            if name.batch_id == batch_id and name not in names and gone:
                del self._known[name]
        for finding in findings:
            known_one = self._known.get(finding.alarm.name)
            if known_one is None or now - known_one.last > UNSEEN_S:
                self._known[finding.alarm.name] = _OpenFinding(now, now)
                continue
            known_one.last = now
            known_one.seen += 1
            if known_one.seen >= 2 and now - known_one.first >= finding.lasts_s:
                confirmed.append(finding)
        return confirmed

    def standing(self, batch_id: str) -> set[AlarmName]:
        """Return the names of the suspected faults of a batch."""
        return {name for name in self._known if name.batch_id == batch_id}

    def forget(self, batch_ids: Collection[str]) -> None:
        """Forget all batches but these."""
        self._known = {name: known for name, known in self._known.items() if name.batch_id in batch_ids}
