"""Invariants that hold under any kill: functions of observations that name every breach, one line each. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence, Set

from gym.rollout import Ledger
from gym.state.alarms import AlarmKind
from tests.chaos.observations import Answered, Cancelled, Ended, LedgerSeen, ModelCall, Outage, QueueSeen, Taken
from tests.chaos.workload import LEAST_TURNS, MOST_TURNS, Task

SHOWN = 5
MOVING = ("queued", "running", "judging")
OUTCOMES = ("succeeded", "failed", "cancelled", "expired")
STOP_WITHIN_S = 2.0
"""How long a running rollout may go on after a cancellation, where Redis can be reached."""


def unbalanced(seen: Iterable[LedgerSeen]) -> list[str]:
    """Each submitted rollout is in exactly one state, at every poll."""
    return _some(
        f"{one.source} showed an unbalanced ledger of {one.batch_id}: {one.ledger.as_dict()}"
        for one in seen
        if not one.ledger.balanced or min(one.ledger.as_dict().values()) < 0
    )


def shrinking(seen: Iterable[LedgerSeen]) -> list[str]:
    """The counts of submitted and ended rollouts never fall; in the order of the polls."""
    last: dict[str, Ledger] = {}
    breaches = []
    for one in seen:
        before = last.get(one.batch_id, Ledger())
        breaches += [
            f"{name} of {one.batch_id} fell from {getattr(before, name)} to {getattr(one.ledger, name)} ({one.source})"
            for name in ("submitted", *OUTCOMES)
            if getattr(one.ledger, name) < getattr(before, name)
        ]
        last[one.batch_id] = one.ledger
    return _some(breaches)


def impossible_queues(seen: Iterable[QueueSeen]) -> list[str]:
    """No count is negative, and Celery's rollouts are part of the queued ones."""
    return _some(
        f"{one.source} showed impossible counts: {dict(one.counts)}"
        for one in seen
        if min(one.counts.values()) < 0 or one.counts["dispatched"] > one.counts["queued"]
    )


def imbalances(alarms: Mapping[str, int]) -> list[str]:
    """The farm's own audit has found nothing either; `alarms` counts what it raised, by kind."""
    count = alarms.get(AlarmKind.LEDGER_IMBALANCE, 0)
    return [f"the farm raised {count} alarms of an imbalance"] if count else []


def unexpected_answers(answers: Iterable[Answered]) -> list[str]:
    """A farm whose processes die answers 503 or not at all, never 500 and never nonsense."""
    return _some(f"{one.request} was answered {one.status}: {one.body[:200]}" for one in answers)


def lost(expected: Set[Task], feed: Iterable[Ended]) -> list[Task]:
    """Rollouts that were submitted and have no recorded outcome."""
    return sorted(expected - {one.task for one in feed})


def duplicated(feed: Iterable[Ended]) -> list[Task]:
    """Rollouts with more than one recorded outcome."""
    return sorted(task for task, count in Counter(one.task for one in feed).items() if count > 1)


def unknown(expected: Set[Task], feed: Iterable[Ended]) -> list[str]:
    """Recorded outcomes of rollouts that were never submitted."""
    return _some(f"{one.rollout_id} was never submitted" for one in feed if one.task not in expected)


def feeds_differ(kept: Sequence[Ended], scratch: Sequence[Ended]) -> list[str]:
    """A reader that kept its cursor over everything has read what a new reader reads, in the same order."""
    if list(kept) == list(scratch):
        return []
    missed, extra = set(scratch) - set(kept), set(kept) - set(scratch)
    breaches = [f"the reader that kept its cursor missed {one.rollout_id} ({one.outcome})" for one in missed]
    breaches += [
        f"the reader that kept its cursor saw {one.rollout_id} as attempt {one.attempt}, {one.outcome}; that is not in"
        " the feed any more"
        for one in extra
    ]
    twice = [task for task, count in Counter(one.rollout_id for one in kept).items() if count > 1]
    breaches += [f"the reader that kept its cursor saw {rollout_id} twice" for rollout_id in twice]
    return _some(breaches or ["the feed was read in another order from scratch"])


def badly_leased(taken: Sequence[Taken], scratch: Iterable[Ended]) -> list[str]:
    """A consumer that leases is handed out every result until it acknowledges it, and never afterwards."""
    acknowledged: set[str] = set()
    breaches = []
    for lease in taken:
        breaches += [
            f"{one} was handed out after it was acknowledged" for one in lease.rollout_ids if one in acknowledged
        ]
        if lease.acknowledged:
            acknowledged |= set(lease.rollout_ids)
    results = {one.rollout_id for one in scratch}
    breaches += [f"{one} was never handed out to be acknowledged" for one in sorted(results - acknowledged)]
    breaches += [f"{one} was handed out and is not in the feed" for one in sorted(acknowledged - results)]
    return _some(breaches)


def unlike_ledger(feed: Sequence[Ended], ledgers: Mapping[str, Ledger]) -> list[str]:
    """At the end the ledger counts what the feed holds."""
    counts = Counter((one.task[0], one.outcome) for one in feed)
    return _some(
        f"the ledger of {batch_id} counts {getattr(ledger, outcome)} {outcome}, its feed {counts[batch_id, outcome]}"
        for batch_id, ledger in ledgers.items()
        for outcome in OUTCOMES
        if getattr(ledger, outcome) != counts[batch_id, outcome]
    )


def unlike_counters(counters: Mapping[str, int], ledgers: Mapping[str, Ledger]) -> list[str]:
    """At the end `farm_rollouts_total` is, outcome by outcome, the sum of all ledgers: nothing was requeued."""
    sums = {outcome: sum(getattr(ledger, outcome) for ledger in ledgers.values()) for outcome in OUTCOMES}
    return [
        f"the farm counts {counters.get(outcome, 0)} {outcome}, its ledgers {sums[outcome]}"
        for outcome in OUTCOMES
        if counters.get(outcome, 0) != sums[outcome]
    ]


def falling(seen: Iterable[Mapping[str, int]]) -> list[str]:
    """A counter never becomes less; in the order of the polls."""
    breaches = []
    last: Mapping[str, int] = {}
    for counters in seen:
        breaches += [f"{name} fell from {last[name]} to {counters.get(name, 0)}" for name in last
                     if counters.get(name, 0) < last[name]]  # fmt: skip
        last = counters
    return _some(breaches)


def unfinished(ledgers: Mapping[str, Ledger]) -> list[str]:
    """At the end nothing is on its way."""
    return _some(
        f"{batch_id} has not ended: {ledger.as_dict()}"
        for batch_id, ledger in ledgers.items()
        if ledger.ended != ledger.submitted
    )


def not_succeeded(feed: Iterable[Ended], cancels: Sequence[Cancelled]) -> list[str]:
    """Every rollout that was not cancelled has succeeded, with the reward that its environment gives."""
    breaches = []
    for one in feed:
        covered = any(cancel.covers(one.rollout_id) for cancel in cancels)
        if not (one.outcome == "succeeded" or (one.outcome == "cancelled" and covered)):
            breaches.append(f"{one.rollout_id} is {one.outcome} in attempt {one.attempt}: {one.error}")
        elif one.outcome == "succeeded" and one.reward != 1.0:
            breaches.append(f"{one.rollout_id} succeeded with reward {one.reward}")
    return _some(breaches)


def unlike_workload(feed: Iterable[Ended]) -> list[str]:
    """Every rollout that succeeded took the turns that it was made for."""
    return _some(
        f"{one.rollout_id} took {one.model_calls} turns"
        for one in feed
        if one.outcome == "succeeded" and not LEAST_TURNS <= one.model_calls <= MOST_TURNS
    )


def moving_after_cancel(seen: Iterable[LedgerSeen], cancels: Iterable[Cancelled]) -> list[str]:
    """A cancellation of a batch that was done stands: nothing of it is on its way in any later poll."""
    since = {cancel.batch_id: cancel.done_at or cancel.acknowledged_at for cancel in cancels if cancel.group_id is None}
    return _some(
        f"{one.batch_id} was cancelled and {one.source} showed it moving: {one.ledger.as_dict()}"
        for one in seen
        if one.at > since.get(one.batch_id, float("inf")) and any(getattr(one.ledger, name) for name in MOVING)
    )


def latest_call_after_cancel_s(
    calls: Iterable[ModelCall], cancels: Collection[Cancelled], outages: Collection[Outage]
) -> float:
    """The latest start of a model call after the cancellation of its rollout was acknowledged, 0 without such a call.

    The time during which no worker could have heard of it does not count.
    """
    latest = 0.0
    for call in calls:
        for cancel in cancels:
            if call.at > cancel.acknowledged_at and cancel.covers(call.rollout_id):
                latest = max(latest, _reachable_s(cancel.acknowledged_at, call.at, outages))
    return latest


def called_after_cancel(
    calls: Collection[ModelCall],
    cancels: Collection[Cancelled],
    outages: Collection[Outage],
    *,
    within_s: float = STOP_WITHIN_S,
) -> list[str]:
    """No model call is started for a cancelled rollout once its worker has had time to hear of it."""
    late_s = latest_call_after_cancel_s(calls, cancels, outages)
    return [f"a model call was started {late_s:.1f} s after its cancellation"] if late_s > within_s else []


def attempts_at_once(
    calls: Iterable[ModelCall], outages: Collection[Outage], *, within_s: float = STOP_WITHIN_S
) -> list[str]:
    """An earlier attempt stops once a later one makes calls: a zombie's rollouts are not run to their end."""
    first: dict[str, dict[int, float]] = defaultdict(dict)
    breaches = []
    ordered = sorted(calls, key=lambda call: call.at)
    for call in ordered:
        first[call.rollout_id].setdefault(call.attempt, call.at)
    for call in ordered:
        later = [at for attempt, at in first[call.rollout_id].items() if attempt > call.attempt]
        if later and call.at > min(later) and _reachable_s(min(later), call.at, outages) > within_s:
            breaches.append(
                f"attempt {call.attempt} of {call.rollout_id} called {call.at - min(later):.1f} s after the next began"
            )
    return _some(breaches)


def called_after_return(
    calls: Iterable[ModelCall], feed: Iterable[Ended], returned: Iterable[float], *, within_s: float = STOP_WITHIN_S
) -> list[str]:
    """A worker that stood still makes no further call for attempts that others have taken over meanwhile."""
    final = {one.rollout_id: one.attempt for one in feed}
    since = max(returned, default=float("inf")) + within_s
    return _some(
        f"attempt {call.attempt} of {call.rollout_id} called {call.at - since:.1f} s too late for one that came back"
        for call in calls
        if call.at > since and call.attempt < final.get(call.rollout_id, 0)
    )


def unclosed_sessions(journal: Iterable[str], killed: Set[int]) -> list[str]:
    """Every environment was closed, but for those that died with their process."""
    open_in: dict[str, int] = {}
    for line in journal:
        event, process, session = line.split()
        if event == "open":
            open_in[session] = int(process)
        else:
            open_in.pop(session, None)
    return _some(f"process {process} left a session open" for process in open_in.values() if process not in killed)


def _reachable_s(began: float, ended: float, outages: Iterable[Outage]) -> float:
    """Seconds between two moments, without the outages."""
    away = sum(max(0.0, min(ended, outage.ended) - max(began, outage.began)) for outage in outages)
    return ended - began - away


def _some(breaches: Iterable[str]) -> list[str]:
    """The first few, and how many there are."""
    found = list(breaches)
    return found[:SHOWN] + ([f"… and {len(found) - SHOWN} more like that"] if len(found) > SHOWN else [])
