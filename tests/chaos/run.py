"""One run: a farm, those who use it, strikes by a seed; ends in a Report."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from tests.chaos.clients import Leaser, Trainer
from tests.chaos.outsiders import OutsideAgent, SessionUser
from tests.chaos.processes import ChaosFarm, FarmOptions
from tests.chaos.report import Report
from tests.chaos.schedule import BAG, Kind, strikes
from tests.chaos.verdict import READY_WITHIN_S, Cast, Left, look_after, report
from tests.chaos.watch import Watch
from tests.chaos.workload import LEAST_TURNS, BatchPlan, plan_batches

Say = Callable[[str], None]
Trouble = Callable[["ChaosFarm", "Watch", "RunOptions", Say], Coroutine[Any, Any, None]]
"""Trouble that is made while rollouts run; cancelled when they have all ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """Amount of work and strikes of a run; rollouts that take longer than `seconds` are a breach."""

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
    cast = _cast(options, folder)
    try:
        return await _run(cast, options, say, trouble)
    finally:
        cast.farm.disk.detach()


async def _run(cast: Cast, options: RunOptions, say: Say, trouble: Trouble) -> Report:
    breaches: list[str] = []
    began = time.monotonic()
    await cast.farm.start()
    watching = asyncio.create_task(cast.watch.run())
    try:
        if not await cast.watch.until_ready(READY_WITHIN_S):
            raise RuntimeError(f"the farm did not get ready; its log is in {cast.farm.folder}")
        say(f"seed {options.seed}: ready after {time.monotonic() - began:.0f} s, {options.rollouts} rollouts")
        began = time.monotonic()
        breaches += await _play(cast, options, trouble(cast.farm, cast.watch, options, say))
        took_s = time.monotonic() - began
        breaches += await look_after(cast)
        left = await Left.of(cast)
    finally:
        await _end(watching)
        breaches += await cast.farm.stop()
    return report(cast, left, seed=options.seed, took_s=took_s, breaches=breaches)


def _cast(options: RunOptions, folder: Path) -> Cast:
    farm = ChaosFarm(folder, options.farm, options.settings)
    plans = plan_batches(options.seed, options.rollouts, farm.journal, least_turns=options.least_turns)
    return Cast(
        farm=farm,
        plans=plans,
        trainer=Trainer(farm.url),
        leaser=Leaser(farm.url, random.Random(options.seed)),
        agent=OutsideAgent(farm.proxy_url),
        session_user=SessionUser(farm.url, farm.journal),
        watch=Watch(farm.url, [plan.batch_id for plan in plans]),
    )


async def _play(cast: Cast, options: RunOptions, trouble: Coroutine[Any, Any, None]) -> list[str]:
    """Use the farm until every rollout has ended, or for as long as the options say, in trouble."""
    beside = [
        asyncio.create_task(trouble),
        asyncio.create_task(cast.agent.run(f"outside-{options.seed}")),
        asyncio.create_task(cast.session_user.run(f"session-{options.seed}")),
    ]
    try:
        async with asyncio.timeout(options.seconds):
            await _use(cast.trainer, cast.leaser, cast.watch, cast.plans, options)
    except TimeoutError:
        return [f"the rollouts had not all ended after {options.seconds:.0f} s"]
    finally:
        await _end(*beside)
    return []


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


async def _end(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    for task in tasks:
        with contextlib.suppress(asyncio.CancelledError):
            await task
