"""A run whose Redis loses its last writes under readers that live through it; ends in a Report, as other runs do.

Redis may repeat forgotten events: a ledger may fall, and a rollout that had ended runs again. So of the checks of
`tests.chaos.verdict` those are made that hold all the same, and two more: no reader is given a rollout twice, and what
Redis says to be with a worker when it is back is not so any more one lease later.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path

from redis.asyncio import Redis

from gym.client import connect
from gym.state.redis.keys import Keys
from tests.chaos import aftermath, invariants
from tests.chaos.clients import CONSUMER, LEASE_TTL_S, Leaser, Trainer, ended, patiently
from tests.chaos.observations import Ended, read_model_calls
from tests.chaos.outsiders import OutsideAgent, SessionUser
from tests.chaos.processes import ChaosFarm
from tests.chaos.redis_servers import Forgetful, Promotion, PutBack
from tests.chaos.report import Report
from tests.chaos.run import RunOptions, Say
from tests.chaos.verdict import READY_WITHIN_S, Cast, Left, look_after
from tests.chaos.watch import Watch
from tests.chaos.workload import BatchPlan, plan_batches

READER_RETRIES = 30
SLACK_S = 15.0  # for the last turns of running rollouts, on a slow machine
LEASE_S = 4.0


@dataclass(slots=True)
class Reader:
    """One who reads results and lives as long as the run. `went_back` counts the reports that the log did."""

    url: str
    seen: list[Ended] = field(default_factory=list)
    leased: list[str] = field(default_factory=list)
    went_back: int = 0

    async def follow(self, plan: BatchPlan) -> None:
        """Read a log to its end."""
        async with connect(self.url, retries=READER_RETRIES, timeout_s=20) as farm:
            results = farm.batch(plan.batch_id).results()
            while not results.done:
                self.seen += [ended(result) for result in await patiently(lambda: results.page(wait_s=2.0))]
            self.went_back += results.went_back

    async def use(self, plan: BatchPlan) -> None:
        """Lease results and acknowledge them, to the end."""
        async with connect(self.url, retries=READER_RETRIES, timeout_s=20) as farm:
            batch = farm.batch(plan.batch_id)
            async with aclosing(batch.leased(CONSUMER, most=20, ttl_s=LEASE_TTL_S)) as results:
                async for result in results:
                    self.leased.append(result.rollout_id)

    def breaches(self, expected: int) -> list[str]:
        """Return the results given twice, or not at all; `expected` results could be leased."""
        twice = [name for name, count in Counter(one.rollout_id for one in self.seen).items() if count > 1]
        again = [name for name, count in Counter(self.leased).items() if count > 1]
        return [
            *(f"a reader was given {name} twice" for name in twice[: invariants.SHOWN]),
            *(f"a consumer was handed out {name} twice" for name in again[: invariants.SHOWN]),
            *([] if len(set(self.leased)) == expected else [f"{len(set(self.leased))} of {expected} were leased"]),
            *([] if self.went_back else ["no reader was told that Redis had lost its last writes"]),
        ]


async def run_forgetful(options: RunOptions, folder: Path, say: Say, forgetful: Forgetful, *, loses_s: float) -> Report:
    """Everything of the run lies in `folder`, which is empty at first."""
    redis = forgetful(folder)
    try:
        url = await redis.start()
        settings = {**options.settings, "FARM_REDIS_URL": url, "FARM_WORKER_LEASE_TTL_S": f"{LEASE_S:g}"}
        return await _run(_cast(options, folder, settings), options, say, redis, url, loses_s)
    finally:
        await redis.stop()


def _cast(options: RunOptions, folder: Path, settings: Mapping[str, str]) -> Cast:
    farm = ChaosFarm(folder, options.farm, settings)
    plans = plan_batches(options.seed, options.rollouts, farm.journal, least_turns=options.least_turns)
    return Cast(
        farm=farm,
        plans=tuple(
            replace(plan, how="whole", portions=(tuple(row for portion in plan.portions for row in portion),))
            for plan in plans
        ),
        trainer=Trainer(farm.url),
        leaser=Leaser(farm.url, random.Random(options.seed)),
        agent=OutsideAgent(farm.proxy_url),
        session_user=SessionUser(farm.url, farm.journal),
        watch=Watch(farm.url, [plan.batch_id for plan in plans]),
    )


async def _run(
    cast: Cast, options: RunOptions, say: Say, redis: PutBack | Promotion, url: str, loses_s: float
) -> Report:
    breaches: list[str] = []
    await cast.farm.start()
    watching = asyncio.create_task(cast.watch.run())
    reader = Reader(cast.farm.url)
    try:
        if not await cast.watch.until_ready(READY_WITHIN_S):
            raise RuntimeError(f"the farm did not get ready; its log is in {cast.farm.folder}")
        began = time.monotonic()
        for plan in cast.plans:
            await cast.trainer.submit(plan)
        try:
            async with asyncio.timeout(options.seconds), asyncio.TaskGroup() as group:
                for plan in cast.plans:
                    group.create_task(reader.follow(plan))
                group.create_task(reader.use(cast.plans[0]))
                breaches += await _lose(cast, options, say, redis, url, loses_s)
        except TimeoutError:
            breaches.append(f"the rollouts had not all ended after {options.seconds:.0f} s")
        took_s = time.monotonic() - began
        breaches += await look_after(cast)
        left = await Left.of(cast)
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        breaches += await cast.farm.stop()
    breaches += reader.breaches(len(cast.plans[0].rollouts))
    return _report(cast, left, reader.seen, seed=options.seed, took_s=took_s, breaches=breaches)


async def _lose(
    cast: Cast, options: RunOptions, say: Say, redis: PutBack | Promotion, url: str, loses_s: float
) -> list[str]:
    """Lose writes in the midst of the work, and check that the workers' assignments in Redis are corrected."""
    while options.progress(cast.watch) < 0.2:  # noqa: ASYNC110  the watch polls
        await asyncio.sleep(0.1)
    await redis.lose(loses_s)
    say(f"  {options.progress(cast.watch):4.0%} done, Redis lost {loses_s:g} s of writes")
    within_s = LEASE_S + SLACK_S
    back_at = time.monotonic()
    async with Redis.from_url(url) as client:
        keys = [Keys("farm").batch(plan.batch_id).live for plan in cast.plans]
        said = {(key, *item) for key in keys for item in (await client.hgetall(key)).items() if item[1][:1] == b"r"}
        while left := [one for one in said if await client.hget(one[0], one[1]) == one[2]]:
            if time.monotonic() - back_at > within_s:
                return [f"{len(left)} rollouts were with their workers {within_s:g} s after Redis was back"]
            await asyncio.sleep(0.1)
    say(f"  {len(said)} rollouts were said to run; all have moved on {time.monotonic() - back_at:.1f} s later")
    return []


def _report(
    cast: Cast, left: Left, seen: Sequence[Ended], *, seed: int, took_s: float, breaches: Sequence[str]
) -> Report:
    farm, watch, scratch = cast.farm, cast.watch, left.ended
    calls = read_model_calls(farm.model_log.read_bytes().splitlines())
    expected = {rollout for plan in cast.plans for rollout in plan.rollouts}
    lost = sorted({*invariants.lost(expected, scratch), *invariants.lost(expected, seen)})
    twice = sorted({*invariants.duplicated(scratch), *invariants.duplicated(seen)})
    return Report(
        seed=seed,
        kills=Counter(),
        rollouts=len(expected),
        outcomes=Counter(one.outcome for one in scratch),
        lost=len(lost),
        duplicated=len(twice),
        most_attempts=max((one.attempt for one in scratch), default=0),
        alarms=dict(watch.alarms),
        polls=watch.polls,
        model_calls=len(calls),
        late_call_s=0.0,
        recover_s=(),
        took_s=took_s,
        load=os.getloadavg()[1],
        breaches=(
            *breaches,
            *farm.unasked_ends,
            *cast.trainer.breaches,
            *(f"lost: {task}" for task in lost[: invariants.SHOWN]),
            *(f"recorded twice: {task}" for task in twice[: invariants.SHOWN]),
            *invariants.unknown(expected, scratch),
            *invariants.not_succeeded(scratch, []),
            *invariants.unlike_workload(scratch),
            *invariants.unbalanced(watch.ledgers),
            *invariants.impossible_queues(watch.queues),
            *invariants.imbalances(watch.alarms),
            *invariants.unexpected_answers(watch.answers),
            *invariants.unlike_ledger(scratch, watch.latest),
            *invariants.unfinished(watch.latest),
            *invariants.unclosed_sessions(farm.journal.read_text().splitlines(), farm.killed),
            *aftermath.remains(left.stored),
            *aftermath.leaked_files(farm.temporary, farm.data_dir, farm.killed),
        ),
    )
