"""Verdict on a run when it is over: the last checks of the farm, and the breaches in all observations."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from gym.client import connect
from tests.chaos import aftermath, invariants
from tests.chaos.clients import Leaser, Trainer, patiently
from tests.chaos.observations import Ended, ModelCall, read_model_calls
from tests.chaos.outsiders import OutsideAgent, SessionUser
from tests.chaos.processes import ChaosFarm
from tests.chaos.report import Report, recovery_times
from tests.chaos.watch import Watch
from tests.chaos.workload import BatchPlan

READY_WITHIN_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cast:
    """A farm and those who use and watch it."""

    farm: ChaosFarm
    plans: tuple[BatchPlan, ...]
    trainer: Trainer
    leaser: Leaser
    agent: OutsideAgent
    session_user: SessionUser
    watch: Watch


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """Contents of the farm at its end: the feed of each batch as a new reader sees it, and Redis itself."""

    ended: tuple[Ended, ...]
    stored: tuple[aftermath.Stored, ...]

    @classmethod
    async def of(cls, cast: Cast) -> Left:
        """Read while the farm still runs."""
        ended = [one for plan in cast.plans for one in await cast.trainer.read_from_scratch(plan)]
        names = [plan.batch_id for plan in cast.plans]
        stored = await aftermath.read_stored(cast.farm.redis_url() or "", names)
        return cls(ended=tuple(ended), stored=tuple(stored))


async def look_after(cast: Cast) -> list[str]:
    """Check the farm after the last kill and rollout: it gets ready, is idle, and has all acknowledged work."""
    farm, trainer, watch = cast.farm, cast.trainer, cast.watch
    if not await watch.until_ready(READY_WITHIN_S):
        return [f"the farm was not ready {READY_WITHIN_S:.0f} s after the last kill"]
    await farm.until_model_answers(READY_WITHIN_S)
    breaches = await aftermath.until_idle(farm.url, farm.model_url, farm.redis_url() or "")
    await watch.until_looked()
    async with connect(farm.url) as client:
        for plan in cast.plans:
            status = await patiently(client.batch(plan.batch_id).status)
            watch.latest[plan.batch_id] = status.ledger
            acknowledged = trainer.acknowledged.get(plan.batch_id)
            if status.ledger.submitted != acknowledged:
                breaches.append(
                    f"{plan.batch_id}: {acknowledged} rollouts were acknowledged, {status.ledger.submitted} are there"
                )
        for rollout_id, answers in cast.agent.answered.items():
            calls = len((await client.rollout(rollout_id))["calls"])
            if calls < len(set(answers)):
                breaches.append(f"{rollout_id} was given {len(set(answers))} answers and shows {calls}")
    return breaches


def report(cast: Cast, left: Left, *, seed: int, took_s: float, breaches: Sequence[str]) -> Report:
    """Return the report; read the files that the stopped farm has left. `breaches` are those known so far."""
    farm, ended = cast.farm, left.ended
    calls = read_model_calls(farm.model_log.read_bytes().splitlines())
    expected = {rollout for plan in cast.plans for rollout in plan.rollouts}
    kept = [one for plan in cast.plans for one in cast.trainer.seen.get(plan.batch_id, [])]
    lost = invariants.lost(expected, ended)
    twice = sorted({*invariants.duplicated(ended), *invariants.duplicated(kept)})
    return Report(
        seed=seed,
        kills=Counter(kill.kind for kill in farm.kills),
        rollouts=len(expected),
        outcomes=Counter(one.outcome for one in ended),
        lost=len(lost),
        duplicated=len(twice),
        most_attempts=max((one.attempt for one in ended), default=0),
        alarms=dict(cast.watch.alarms),
        polls=cast.watch.polls,
        model_calls=len(calls),
        late_call_s=invariants.latest_call_after_cancel_s(calls, cast.trainer.cancels, farm.outages),
        recover_s=recovery_times(farm.kills, cast.watch.ready, [at for one in left.stored for at in one.recorded_at]),
        took_s=took_s,
        load=os.getloadavg()[1],
        breaches=(
            *breaches,
            *farm.unasked_ends,
            *cast.trainer.breaches,
            *cast.agent.unexpected,
            *cast.session_user.breaches,
            *(f"lost: {task}" for task in lost[: invariants.SHOWN]),
            *(f"recorded twice: {task}" for task in twice[: invariants.SHOWN]),
            *invariants.unknown(expected, ended),
            *_of_feeds(cast, kept, ended),
            *_of_ledgers(cast.watch, cast.trainer, ended),
            *_of_calls(cast, calls, ended),
            *invariants.unclosed_sessions(farm.journal.read_text().splitlines(), farm.killed),
            *aftermath.remains(left.stored),
            *aftermath.leaked_files(farm.temporary, farm.data_dir, farm.killed),
        ),
    )


def _of_feeds(cast: Cast, kept: Sequence[Ended], ended: Sequence[Ended]) -> list[str]:
    leased = cast.plans[0].batch_id
    return [
        *invariants.feeds_differ(kept, ended),
        *invariants.badly_leased(cast.leaser.taken, [one for one in ended if one.task[0] == leased]),
        *invariants.not_succeeded(ended, cast.trainer.cancels),
        *invariants.unlike_workload(ended),
    ]


def _of_ledgers(watch: Watch, trainer: Trainer, ended: Sequence[Ended]) -> list[str]:
    return [
        *invariants.unbalanced(watch.ledgers),
        *invariants.shrinking(watch.ledgers),
        *invariants.impossible_queues(watch.queues),
        *invariants.imbalances(watch.alarms),
        *invariants.unexpected_answers(watch.answers),
        *invariants.unlike_ledger(ended, watch.latest),
        *invariants.unlike_counters(watch.ends[-1] if watch.ends else {}, watch.latest),
        *invariants.falling(watch.ends),
        *invariants.unfinished(watch.latest),
        *invariants.moving_after_cancel(watch.ledgers, trainer.cancels),
    ]


def _of_calls(cast: Cast, calls: Sequence[ModelCall], ended: Sequence[Ended]) -> list[str]:
    farm = cast.farm
    return [
        *invariants.called_after_cancel(calls, cast.trainer.cancels, farm.outages),
        *invariants.attempts_at_once(calls, farm.outages),
        *invariants.called_after_return(calls, ended, farm.returned),
    ]
