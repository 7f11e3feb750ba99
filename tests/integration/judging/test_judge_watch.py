"""Reports of a judge worker to the circuit breakers of judges, against a real Redis."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from gym.batch import BatchSpec
from gym.errors import JudgeParked, JudgeRefused, JudgeUnreachable, RolloutError
from gym.model_client.routing.served_model import ServedModel
from gym.policy import PolicySpec
from gym.state.ledger.breakers import Breaker, BreakerKey, Breakers, judge_key
from gym.state.ledger.judging import JudgeClaim
from gym.state.redis.store import Store
from gym.state.settings import BreakerSettings
from workers.judging.breaker_reports import JudgeBreakerReports
from workers.judging.runner import JudgedRollout
from workers.process.committer import Committer

pytestmark = pytest.mark.anyio
KEY = judge_key("j")
SPEC = BatchSpec()


class Desk:
    """Recorder of reports; judges answer when a test allows it."""

    def __init__(self) -> None:
        self.answers: dict[str, float] = {}
        self.told: list[str] = []

    def answered_at(self, judge: str) -> float | None:
        return self.answers.get(judge)

    def park(self, judge: str) -> None:
        self.told.append(f"park {judge}")

    def reopen(self, judge: str) -> None:
        self.told.append(f"reopen {judge}")


class Replicas:
    """One replica of `j`, whose list of addresses can change."""

    revision = 1

    def get(self, name: str) -> ServedModel | None:
        spec = PolicySpec(base_urls=["http://127.0.0.1:9"], model="m")
        return ServedModel(kind="judge", name=name, spec=spec, revision=self.revision, paused=None, version=None)


class Worker:
    """A judge worker's watch, and the rollouts whose judging it hears of."""

    def __init__(self, store: Store, **settings: Any) -> None:
        self.breakers = Breakers(store, BreakerSettings(**{"failures": 3, "probe_after_s": 30} | settings))
        self.committer = Committer(store)
        self.desk, self.replicas = Desk(), Replicas()
        desk: Any = self.desk
        self.watch = JudgeBreakerReports(self.breakers, self.committer, desk, self.replicas)
        self._tokens = 0

    async def fails(self, member: int, error: RolloutError | None = None, probe: BreakerKey | None = None) -> None:
        """Another try of a rollout is over; each is a claim of its own."""
        self._tokens += 1
        if error is None:
            error = JudgeUnreachable(f"failure {self._tokens}", judge="j")
        await self.watch.ended(_judged(member, self._tokens, probe), error)

    async def succeeds(self, member: int, probe: BreakerKey | None = None) -> None:
        self._tokens += 1
        judged = _judged(member, self._tokens, probe)
        self.desk.answers["j"] = time.monotonic()
        await self.watch.ended(judged, None)

    async def breaker(self) -> Breaker | None:
        return next((breaker for breaker in await self.breakers.all() if breaker.key == KEY), None)


def _judged(member: int, token: int, probe: BreakerKey | None) -> JudgedRollout:
    claim = JudgeClaim(
        batch_id="b",
        member=f"{member}:0",
        attempt=1,
        token=str(token),
        environment="e",
        judge="j",
        over_at=1000 + member,
        began_at=2000,
        now=2000,
        lost=0,
        record=b"{}",
        tries=(),
        ask=b"",
    )
    return JudgedRollout(claim, SPEC, time.monotonic(), probe)


@asynccontextmanager
async def working(store: Store, **settings: Any) -> AsyncIterator[Worker]:
    worker = Worker(store, **settings)
    committing = asyncio.create_task(worker.committer.run())
    yield worker
    committing.cancel()


async def test_rollouts_in_a_row_without_an_answer_park_their_judge(store: Store) -> None:
    async with working(store) as worker:
        for member in range(2):
            await worker.fails(member)
        assert worker.watch.parked("j") is None
        await worker.fails(2)
        breaker = worker.watch.parked("j")
        assert breaker is not None
        assert (breaker.failures, breaker.error) == (3, "failure 3")
        assert worker.desk.told == ["park j"]
        assert worker.watch.parked("other") is None


async def test_one_rollout_alone_parks_no_judge_however_often_it_tries(store: Store) -> None:
    async with working(store) as worker:
        for _ in range(10):
            await worker.fails(0)
        breaker = await worker.breaker()
        assert breaker is not None
        assert (breaker.failures, breaker.open) == (1, False)


@pytest.mark.parametrize("refused", [False, True])
async def test_an_answer_between_failures_begins_the_count_anew(store: Store, refused: bool) -> None:
    async with working(store) as worker:
        await worker.fails(0)
        await worker.fails(1)
        await worker.watch.refresh()
        worker.desk.answers["j"] = time.monotonic()
        if refused:
            await worker.fails(2, JudgeRefused("no"))
        else:
            await worker.succeeds(2)
        assert await worker.breaker() is None
        await worker.fails(3)
        assert worker.watch.parked("j") is None


async def test_what_says_nothing_about_the_judge_does_not_count(store: Store) -> None:
    async with working(store, failures=1) as worker:
        await worker.fails(0, JudgeParked("not asked", judge="j"))
        await worker.fails(1, JudgeUnreachable("no time left to ask"))
        assert await worker.breaker() is None


async def test_answers_cost_no_call_to_redis_while_nothing_fails() -> None:
    store = Store.connect("redis://127.0.0.1:9", timeout_s=1)
    async with working(store) as worker:
        for member in range(100):
            await worker.succeeds(member)
    await store.close()


async def test_an_answer_releases_a_parked_judge_in_every_worker(store: Store) -> None:
    async with working(store, failures=1) as worker, working(store, failures=1) as other:
        await worker.fails(0)
        await other.watch.refresh()
        await worker.succeeds(1)
        assert await worker.breaker() is None
        await other.watch.refresh()
        assert other.watch.parked("j") is None
        assert other.desk.told == ["park j", "reopen j"]


async def test_a_probe_that_fails_makes_the_pause_longer_also_of_the_rollout_that_was_the_probe_before(
    store: Store,
) -> None:
    async with working(store, failures=1, probe_after_s=0.01) as worker:
        await worker.fails(0)
        pauses = []
        for _ in range(3):
            async with asyncio.timeout(20):
                while not await worker.breakers.may_probe(KEY):  # noqa: ASYNC110  time has no event
                    await asyncio.sleep(0.005)
            before = await store.now_ms()
            await worker.fails(0, probe=KEY)
            breaker = await worker.breaker()
            assert breaker is not None
            pauses.append(breaker.next_probe_at - before)
        assert pauses[0] >= 20
        assert pauses[1] >= 40
        assert pauses[2] >= 80


async def test_a_probe_that_shows_nothing_makes_room_for_another_after_a_pause(store: Store) -> None:
    async with working(store, failures=1, probe_after_s=0.01) as worker:
        await worker.fails(0)
        for _ in range(2):
            async with asyncio.timeout(20):
                while not await worker.breakers.may_probe(KEY):  # noqa: ASYNC110  time has no event
                    await asyncio.sleep(0.005)
            await worker.watch.ended(_judged(1, 99, KEY), None)


async def test_other_replicas_of_a_parked_judge_are_probed_at_once(store: Store) -> None:
    async with working(store, failures=1, probe_after_s=1000, max_probe_after_s=2000) as worker:
        await worker.fails(0)
        watching = asyncio.create_task(worker.watch.watch_replicas())
        try:
            await asyncio.sleep(0)
            assert not await worker.breakers.may_probe(KEY)
            worker.replicas.revision = 2
            async with asyncio.timeout(30):
                while not await worker.breakers.may_probe(KEY):  # noqa: ASYNC110  time has no event
                    await asyncio.sleep(0.05)
        finally:
            watching.cancel()


async def test_a_judge_that_is_full_but_answers_others_or_says_so_is_not_parked(store: Store) -> None:
    async with working(store) as worker:
        for member in range(10):
            worker.desk.answers["j"] = time.monotonic()
            await worker.fails(member)
            assert worker.watch.parked("j") is None
            await asyncio.sleep(0.002)  # times are of whole milliseconds
