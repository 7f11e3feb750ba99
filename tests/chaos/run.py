"""One run: a farm, a workload, strikes by a seed, everything watched; ends in a Report."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from gym.client import connect
from tests.chaos import aftermath, invariants
from tests.chaos.clients import Leaser, Trainer, patiently
from tests.chaos.observations import Ended, read_model_calls
from tests.chaos.outsiders import OutsideAgent, SessionUser
from tests.chaos.processes import ChaosFarm, FarmOptions
from tests.chaos.report import Report, recovery_times
from tests.chaos.schedule import BAG, Kind, strikes
from tests.chaos.watch import Watch
from tests.chaos.workload import LEAST_TURNS, BatchPlan, plan_batches

READY_WITHIN_S = 120.0
Say = Callable[[str], None]
Trouble = Callable[["ChaosFarm", "Watch", "RunOptions", Say], Coroutine[Any, Any, None]]
"""What is done to the farm while rollouts run; cancelled when they have all ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How much is done and how hard it is made; rollouts that take longer than `seconds` are a breach."""

    seed: int
    rollouts: int = 2000
    least_turns: int = LEAST_TURNS
    seconds: float = 900.0
    farm: FarmOptions = field(default_factory=FarmOptions)
    bag: Mapping[Kind, int] = field(default_factory=lambda: dict(BAG))
    least_s: float = 1.0
    most_s: float = 3.0
    most_strikes: int | None = None
    cancelled_groups: int = 5
    portion_pause_s: float = 2.0
    settings: Mapping[str, str] = field(default_factory=dict)
    """More settings of the farm, as `FARM_…` variables."""

    def progress(self, watch: Watch) -> float:
        """The share of the rollouts that have ended, as far as the farm has said."""
        return sum(ledger.ended for ledger in watch.latest.values()) / self.rollouts


async def strike_by_seed(farm: ChaosFarm, watch: Watch, options: RunOptions, say: Say) -> None:
    """Kill -9 by the seed's schedule, until nothing is left to run. Of a kind that is away nothing is killed."""
    schedule = strikes(options.seed, bag=options.bag, least_s=options.least_s, most_s=options.most_s)
    for strike in islice(schedule, options.most_strikes):
        await asyncio.sleep(strike.after_s)
        done = options.progress(watch)
        if done == 1.0:
            return
        kill = farm.strike(strike)
        watch.look_now()
        say(f"  {done:4.0%} done, killed {strike.kind}" + ("" if kill else ": there is none now"))


async def run(options: RunOptions, folder: Path, say: Say, trouble: Trouble = strike_by_seed) -> Report:
    """Everything of the run lies in `folder`, which is empty at first."""
    farm = ChaosFarm(folder, options.farm, options.settings)
    plans = plan_batches(options.seed, options.rollouts, farm.journal, least_turns=options.least_turns)
    trainer, agent = Trainer(farm.url), OutsideAgent(farm.proxy_url)
    leaser = Leaser(farm.url, random.Random(options.seed))
    session_user = SessionUser(farm.url, farm.journal)
    watch = Watch(farm.url, [plan.batch_id for plan in plans])
    began = time.monotonic()
    await farm.start()
    breaches: list[str] = []
    watching = asyncio.create_task(watch.run())
    try:
        if not await watch.until_ready(READY_WITHIN_S):
            raise RuntimeError(f"the farm did not get ready; its log is in {folder}")
        say(f"seed {options.seed}: ready after {time.monotonic() - began:.0f} s, {options.rollouts} rollouts")
        began = time.monotonic()
        outside = [
            asyncio.create_task(agent.run(f"outside-{options.seed}")),
            asyncio.create_task(session_user.run(f"session-{options.seed}")),
        ]
        striking = asyncio.create_task(trouble(farm, watch, options, say))
        try:
            async with asyncio.timeout(options.seconds):
                await _use(trainer, leaser, watch, plans, options)
        except TimeoutError:
            breaches.append(f"the rollouts had not all ended after {options.seconds:.0f} s")
        took_s = time.monotonic() - began
        await _end(striking, *outside)
        breaches += await _after(farm, trainer, watch, agent, plans)
        ended = [one for plan in plans for one in await trainer.read_from_scratch(plan)]
        stored = await aftermath.read_stored(farm.redis_url() or "", [plan.batch_id for plan in plans])
    finally:
        await _end(watching)
        breaches += await farm.stop()
    calls = read_model_calls(farm.model_log.read_bytes().splitlines())
    expected = {rollout for plan in plans for rollout in plan.rollouts}
    kept = [one for plan in plans for one in trainer.seen.get(plan.batch_id, [])]
    breaches += _judge(farm, trainer, watch, expected=expected, kept=kept, ended=ended)
    breaches += session_user.breaches
    breaches += invariants.badly_leased(leaser.taken, [one for one in ended if one.task[0] == plans[0].batch_id])
    breaches += invariants.called_after_cancel(calls, trainer.cancels, farm.outages)
    breaches += invariants.attempts_at_once(calls, farm.outages)
    breaches += invariants.called_after_return(calls, ended, farm.returned)
    breaches += aftermath.remains(stored) + aftermath.leaked_files(farm.temporary, farm.data_dir, farm.killed)
    return Report(
        seed=options.seed,
        kills=Counter(kill.kind for kill in farm.kills),
        rollouts=len(expected),
        outcomes=Counter(one.outcome for one in ended),
        lost=len(invariants.lost(expected, ended)),
        duplicated=len(set(invariants.duplicated(ended)) | set(invariants.duplicated(kept))),
        most_attempts=max((one.attempt for one in ended), default=0),
        alarms=dict(watch.alarms),
        polls=watch.polls,
        model_calls=len(calls),
        late_call_s=invariants.latest_call_after_cancel_s(calls, trainer.cancels, farm.outages),
        recover_s=recovery_times(farm.kills, watch.ready, [at for one in stored for at in one.recorded_at]),
        took_s=took_s,
        load=os.getloadavg()[1],
        breaches=tuple(breaches),
    )


async def _use(trainer: Trainer, leaser: Leaser, watch: Watch, plans: Sequence[BatchPlan], options: RunOptions) -> None:
    """Submit, follow and cancel; returns when every feed has been read to its end."""
    async with asyncio.TaskGroup() as group:
        for plan in plans:
            group.create_task(trainer.submit(plan, pause_s=options.portion_pause_s))
            group.create_task(trainer.follow(plan))
            if plan.cancel_at is not None:
                group.create_task(_cancel_at(trainer, watch, plan, plan.cancel_at))
        group.create_task(leaser.consume(plans[0]))
        group.create_task(_cancel_groups(trainer, watch, plans[0], options.cancelled_groups))


async def _cancel_at(trainer: Trainer, watch: Watch, plan: BatchPlan, share: float) -> None:
    await _until_ended(watch, plan, share)
    await trainer.cancel(plan)


async def _cancel_groups(trainer: Trainer, watch: Watch, plan: BatchPlan, most: int) -> None:
    await _until_ended(watch, plan, 0.2)
    await trainer.cancel_groups(plan, most)


async def _until_ended(watch: Watch, plan: BatchPlan, share: float) -> None:
    wanted = share * len(plan.rollouts)
    while plan.batch_id not in watch.latest or watch.latest[plan.batch_id].ended < wanted:  # noqa: ASYNC110  polled
        await asyncio.sleep(0.1)


async def _after(
    farm: ChaosFarm, trainer: Trainer, watch: Watch, agent: OutsideAgent, plans: Sequence[BatchPlan]
) -> list[str]:
    """When all has ended and nothing is killed any more: the farm gets ready, is idle, and has what it acknowledged."""
    breaches = []
    if not await watch.until_ready(READY_WITHIN_S):
        return [f"the farm was not ready {READY_WITHIN_S:.0f} s after the last kill"]
    await farm.until_model_answers(READY_WITHIN_S)
    breaches += await aftermath.until_idle(farm.url, farm.model_url, farm.redis_url() or "")
    watch.look_now()
    for plan in plans:
        async with connect(farm.url) as client:
            status = await patiently(client.batch(plan.batch_id).status)
        watch.latest[plan.batch_id] = status.ledger
        if status.ledger.submitted != trainer.acknowledged.get(plan.batch_id):
            breaches.append(
                f"{plan.batch_id}: {trainer.acknowledged.get(plan.batch_id)} rollouts were acknowledged and"
                f" {status.ledger.submitted} are there"
            )
    return breaches + agent.unexpected + await _captured(farm.url, agent)


async def _captured(url: str, agent: OutsideAgent) -> list[str]:
    """Every answer that an outside agent was given is in its rollout."""
    breaches = []
    async with connect(url) as client:
        for rollout_id, answers in agent.answered.items():
            shown = await client.rollout(rollout_id)
            if len(shown["calls"]) < len(set(answers)):
                breaches.append(f"{rollout_id} was given {len(answers)} answers and shows {len(shown['calls'])}")
    return breaches


def _judge(
    farm: ChaosFarm,
    trainer: Trainer,
    watch: Watch,
    *,
    expected: set[tuple[str, str, int]],
    kept: Sequence[Ended],
    ended: Sequence[Ended],
) -> list[str]:
    sessions = farm.journal.read_text().splitlines()
    return [
        *farm.unasked_ends,
        *trainer.breaches,
        *(f"lost: {task}" for task in invariants.lost(expected, ended)[: invariants.SHOWN]),
        *(f"twice in the feed: {task}" for task in invariants.duplicated(ended)[: invariants.SHOWN]),
        *invariants.unknown(expected, ended),
        *invariants.feeds_differ(kept, ended),
        *invariants.unbalanced(watch.ledgers),
        *invariants.shrinking(watch.ledgers),
        *invariants.impossible_queues(watch.queues),
        *invariants.imbalances(watch.alarms),
        *invariants.unexpected_answers(watch.answers),
        *invariants.unlike_ledger(ended, watch.latest),
        *invariants.unfinished(watch.latest),
        *invariants.not_succeeded(ended, trainer.cancels),
        *invariants.unlike_workload(ended),
        *invariants.moving_after_cancel(watch.ledgers, trainer.cancels),
        *invariants.unclosed_sessions(sessions, farm.killed),
    ]


async def _end(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    for task in tasks:
        with contextlib.suppress(asyncio.CancelledError):
            await task
