"""The ledger audit against a real Redis from which entries were removed by hand."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from gym.config import Settings
from gym.state.alarms import AlarmKind, Alarms
from gym.state.leases import WorkerStatus
from gym.state.ledger.batches import Batches, activate
from gym.state.ledger.breakers import policy_key
from gym.state.ledger.rollouts import Commit, Rollouts
from gym.state.ledger.submission import NewBatch, StagedRow, Staging
from gym.state.redis.store import Store
from gym.task import RowHeader
from workers.dispatch.batch import ActiveBatch
from workers.dispatch.upkeep import audit
from workers.dispatch.upkeep.audit import Auditor

pytestmark = pytest.mark.anyio
_numbers = itertools.count()


class Clock:
    """A clock that the test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Audited:
    """A batch of 4 rows of 2 samples, and the audit of it."""

    store: Store
    auditor: Auditor
    clock: Clock
    batch_id: str = field(default_factory=lambda: f"audited-{next(_numbers)}")
    workers: list[str] = field(default_factory=lambda: ["w1"])

    @property
    def keys(self) -> Any:
        return self.store.keys.batch(self.batch_id)

    async def submit(self, *, announce: bool = True) -> None:
        staging = Staging(self.store, self.batch_id)
        header = RowHeader(task_id=None, environment="weather", num_samples=2)
        await staging.add([StagedRow(header=header, raw=b"{}", digest="")] * 4)
        spec = NewBatch(spec={}, digest="d", run="r", priority=5, weight=1.0, policy="p")
        await staging.publish(create=spec, seal=True)
        if announce:
            await activate(self.store, self.batch_id)
        else:
            await self.store.redis.zrem(self.store.keys.active, self.batch_id)

    async def look(self, times: int = 2) -> None:
        batch = ActiveBatch(
            batch_id=self.batch_id, run="r", priority=5, weight=1.0, created_at=0, max_attempts=3, deadline_at=None,
            rollout_timeout_s=600.0, judge_timeout_s=600.0, policy=policy_key("p"),
        )  # fmt: skip
        workers = [WorkerStatus(worker=name, lease_ends_in_s=5, info={"concurrency": 8}) for name in self.workers]
        for _ in range(times):
            self.clock.now += audit.INTERVAL_S
            await self.auditor.run_when_due({self.batch_id: batch}, workers)

    async def raised(self) -> list[str]:
        log = await Alarms(self.store).log()
        return [alarm["kind"] for alarm in log if alarm["batch_id"] == self.batch_id and alarm["event"] == "raised"]

    async def finish(self) -> int:
        """Run all rollouts that can run and return their number."""
        rollouts = Rollouts(self.store)
        taken = await rollouts.take(self.batch_id, 100)
        claims = await rollouts.claim(self.batch_id, "w1", [(item.member, item.attempt) for item in taken])
        commit = Commit(outcome="succeeded", record=b"{}", trajectory=b"", usable=True, early_stop=0, sums={})
        await self.store.run_many([rollouts.commit_call(claim, commit) for claim in claims])
        return len(claims)

    async def done(self) -> bool:
        status = await Batches(self.store).status(self.batch_id)
        return status.ended and status.ledger.balanced and status.ledger.succeeded == 8


@pytest.fixture
async def audited(redis_url: str) -> AsyncIterator[Audited]:
    store = Store.connect(redis_url)
    clock = Clock()
    batch = Audited(store, Auditor(Settings(redis={"url": redis_url}), store, clock=clock), clock)
    await batch.submit()
    yield batch
    await store.close()


async def test_a_batch_on_its_way_raises_nothing(audited: Audited) -> None:
    rollouts = Rollouts(audited.store)
    await audited.look()
    taken = await rollouts.take(audited.batch_id, 3)
    await audited.look()
    await rollouts.claim(audited.batch_id, "w1", [(item.member, item.attempt) for item in taken])
    await audited.look()
    await Batches(audited.store).cancel_batch(audited.batch_id)
    await audited.look()
    assert await Alarms(audited.store).log() == []


async def test_rollouts_that_fell_out_of_the_backlog_are_queued_again_and_said(audited: Audited) -> None:
    await audited.store.redis.lpop(audited.keys.backlog, 2)
    await audited.look(times=1)
    assert await audited.raised() == []
    await audited.look(times=1)
    assert await audited.raised() == [AlarmKind.NO_OWNER]
    (alarm,) = await Alarms(audited.store).log()
    assert alarm["rollouts"] == [f"{audited.batch_id}:{row}:{sample}" for row in (0, 1) for sample in (0, 1)]
    assert await audited.finish() == 8
    assert await audited.done()
    totals = await audited.store.redis.hgetall(audited.store.keys.totals)
    assert totals[b"alarm:no_owner"] == b"1"


async def test_live_rollouts_that_vanished_are_queued_again_and_the_counters_are_right(audited: Audited) -> None:
    rollouts = Rollouts(audited.store)
    taken = await rollouts.take(audited.batch_id, 4)
    await rollouts.claim(audited.batch_id, "w1", [(item.member, item.attempt) for item in taken[:2]])
    gone = [taken[0].member, taken[3].member]  # one running, one dispatched
    await audited.store.redis.hdel(audited.keys.live, *gone)
    await audited.look()
    assert await audited.raised() == [AlarmKind.LEDGER_IMBALANCE]
    await audited.look(times=1)
    assert await Alarms(audited.store).standing() == {}
    (cleared, raised) = await Alarms(audited.store).log()
    assert (cleared["event"], raised["event"]) == ("cleared", "raised")
    assert sorted(raised["rollouts"]) == sorted(f"{audited.batch_id}:{member}" for member in gone)
    await rollouts.recover(audited.batch_id, overdue_ms=2**53, max_attempts=3, dead_workers=["w1"])
    assert await audited.finish() == 8
    assert await audited.done()


async def test_rollouts_of_a_worker_that_is_in_no_book_are_taken_back(audited: Audited) -> None:
    rollouts = Rollouts(audited.store)
    taken = await rollouts.take(audited.batch_id, 2)
    await rollouts.claim(audited.batch_id, "ghost", [(item.member, item.attempt) for item in taken])
    await audited.look(times=5)
    assert await audited.raised() == []  # it may be about to register
    await audited.look(times=2)
    assert await audited.raised() == [AlarmKind.NO_OWNER]
    assert await audited.finish() == 8
    assert await audited.done()


async def test_an_alarm_that_stands_is_raised_once_and_cleared_when_its_batch_is_over(audited: Audited) -> None:
    async def look_while_it_comes_back(times: int) -> None:
        for _ in range(times):
            await audited.store.redis.hincrby(audited.keys.meta, "failed", 1)
            await audited.look(times=1)

    await look_while_it_comes_back(6)
    assert await audited.raised() == [AlarmKind.LEDGER_IMBALANCE]
    # another dispatcher that leads now
    audited.auditor = successor = Auditor(Settings(), audited.store, clock=audited.clock)
    await look_while_it_comes_back(3)
    assert await audited.raised() == [AlarmKind.LEDGER_IMBALANCE]
    assert len(await Alarms(audited.store).standing()) == 1
    audited.clock.now += audit.INTERVAL_S
    await successor.run_when_due({}, [])
    assert await Alarms(audited.store).standing() == {}


async def test_counters_that_contradict_what_is_there_are_counted_anew(audited: Audited) -> None:
    rollouts = Rollouts(audited.store)
    taken = await rollouts.take(audited.batch_id, 3)
    claims = await rollouts.claim(audited.batch_id, "w1", [(item.member, item.attempt) for item in taken[:2]])
    commit = Commit(outcome="succeeded", record=b"{}", trajectory=b"", usable=True, early_stop=0, sums={})
    await audited.store.run_many([rollouts.commit_call(claims[0], commit)])
    wrong = {"queued": 1, "dispatched": 0, "running": 0, "succeeded": 5, "failed": 1, "judging": 1}
    await audited.store.redis.hset(audited.keys.meta, mapping=wrong)
    await audited.look()
    assert await audited.raised() == [AlarmKind.LEDGER_IMBALANCE]
    ledger = (await Batches(audited.store).status(audited.batch_id)).ledger
    assert (ledger.queued, ledger.running, ledger.judging, ledger.succeeded, ledger.failed) == (6, 1, 0, 1, 0)
    await audited.look(times=1)
    assert await Alarms(audited.store).standing() == {}


async def test_a_rollout_beyond_its_limits_is_taken_back_from_a_worker_that_lives(audited: Audited) -> None:
    rollouts = Rollouts(audited.store)
    taken = await rollouts.take(audited.batch_id, 2)
    late, other = await rollouts.claim(audited.batch_id, "w1", [(item.member, item.attempt) for item in taken])
    value = (await audited.store.redis.hget(audited.keys.live, late.member)).decode().split("|")
    value[3] = str(int(value[3]) - 721_000)
    await audited.store.redis.hset(audited.keys.live, late.member, "|".join(value))
    await audited.look()
    assert await audited.raised() == [AlarmKind.NO_PROGRESS]
    assert await rollouts.still_mine([late, other], "w1") == [False, True]
    [again] = [item for item in await rollouts.take(audited.batch_id, 8) if item.member == late.member]
    assert again.attempt == 2


async def test_jobs_that_do_not_come_out_of_celery_are_sent_again_when_nothing_moves(audited: Audited) -> None:
    await Rollouts(audited.store).take(audited.batch_id, 8)
    await audited.look(times=65)
    assert await audited.raised() == [AlarmKind.NO_PROGRESS]
    assert len(await Rollouts(audited.store).take(audited.batch_id, 8)) == 8


async def test_a_batch_whose_publisher_died_before_it_told_anybody_is_found(audited: Audited) -> None:
    other = Audited(audited.store, audited.auditor, audited.clock)
    await other.submit(announce=False)
    staged = audited.store.keys.staged
    await audited.look(times=1)
    assert await other.raised() == []
    await audited.store.redis.zincrby(staged, -audit.ANNOUNCED_WITHIN_MS, other.batch_id)
    audited.auditor = Auditor(Settings(), audited.store, clock=audited.clock)
    await audited.look(times=1)
    assert await audited.store.redis.zscore(audited.store.keys.active, other.batch_id) is not None
    assert await other.raised() == [AlarmKind.NO_OWNER]
    assert await audited.raised() == []


async def test_a_redis_that_became_one_that_drops_keys_is_said_while_it_is_so(audited: Audited) -> None:
    redis = audited.store.redis
    await redis.config_set("maxmemory-policy", "allkeys-lru")
    try:
        await audited.look(times=1)
        assert [alarm["kind"] for alarm in await Alarms(audited.store).log()] == [AlarmKind.REDIS_EVICTS]
    finally:
        await redis.config_set("maxmemory-policy", "noeviction")
    audited.clock.now += audit.REDIS_INTERVAL_S
    await audited.look(times=1)
    assert await Alarms(audited.store).standing() == {}
