"""A dispatcher on a Redis with unreadable values: their neighbours continue, and an alarm names the problem."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import pytest

from gym.config import Settings
from gym.state.alarms import AlarmKind, Alarms
from gym.state.ledger.batches import Batches, activate
from gym.state.ledger.rollouts import Commit, Rollouts
from gym.state.ledger.submission import NewBatch, StagedRow, Staging
from gym.state.redis.store import Store
from gym.task import RowHeader
from workers.dispatch import quarantine
from workers.dispatch.dispatcher import Dispatcher
from workers.dispatch.publisher import Job, JudgeJob
from workers.dispatch.upkeep import audit, housekeeping

pytestmark = pytest.mark.anyio
WITHIN_S = 20.0
SPEC = {"run": "r", "policy": "p", "limits": {}}


@dataclass
class Sent:
    """Stand-in for the broker that keeps the sent jobs."""

    jobs: list[Job | JudgeJob] = field(default_factory=list)

    def send(self, jobs: Sequence[Job | JudgeJob], sent_ms: int) -> bool:
        self.jobs += jobs
        return True

    def oldest_waiting_ms(self) -> int | None:
        return 0

    def close(self) -> None:
        """Do nothing."""


@dataclass
class Dispatching:
    """A running dispatcher, with a worker with slots that the test plays."""

    store: Store
    sent: Sent

    async def submit(self, batch_id: str, rows: int = 4) -> None:
        staging = Staging(self.store, batch_id)
        header = RowHeader(task_id=None, environment="weather", num_samples=1)
        await staging.add([StagedRow(header=header, raw=b"{}", digest="")] * rows)
        create = NewBatch(spec=SPEC, digest="d", run="r", priority=5, weight=1.0, policy="p")
        await staging.publish(create=create, seal=True)
        await activate(self.store, batch_id)

    def sent_of(self, batch_id: str) -> int:
        return sum(len(job.members) for job in self.sent.jobs if job.batch_id == batch_id)

    async def until_sent(self, batch_id: str, rollouts: int) -> None:
        async with asyncio.timeout(WITHIN_S):
            while self.sent_of(batch_id) < rollouts:  # noqa: ASYNC110  the dispatcher has no event for it
                await asyncio.sleep(0.02)

    async def alarm(self, kind: AlarmKind, batch_id: str | None) -> str:
        """Return the message of an alarm, once it stands."""
        async with asyncio.timeout(WITHIN_S):
            while True:
                for alarm in (await Alarms(self.store).standing()).values():
                    if (alarm["kind"], alarm["batch_id"]) == (kind, batch_id):
                        return str(alarm["message"])
                await asyncio.sleep(0.05)

    async def until_clear(self) -> None:
        async with asyncio.timeout(WITHIN_S):
            while await Alarms(self.store).standing():  # noqa: ASYNC110  as above
                await asyncio.sleep(0.05)

    async def finish(self, batch_id: str) -> None:
        """Run all sent jobs until the batch has ended."""
        rollouts, batches = Rollouts(self.store), Batches(self.store)
        commit = Commit(outcome="succeeded", record=b"{}", trajectory=b"", usable=True, early_stop=0, sums={})
        async with asyncio.timeout(WITHIN_S):
            while not (await batches.status(batch_id)).ended:
                jobs, self.sent.jobs = self.sent.jobs, []
                for job in jobs:
                    if isinstance(job, Job):
                        claims = await rollouts.claim(job.batch_id, "w1", job.members)
                        await self.store.run_many([rollouts.commit_call(claim, commit) for claim in claims])
                await asyncio.sleep(0.02)


@pytest.fixture
async def dispatching(store: Store, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Dispatching]:
    for module, name, value in (
        (quarantine, "FIRST_PAUSE_S", 0.2),
        (quarantine, "TRIAL_S", 0.2),
        (housekeeping, "INTERVAL_S", 0.1),
        (audit, "INTERVAL_S", 0.1),
        (audit, "REDIS_INTERVAL_S", 0.2),
    ):
        monkeypatch.setattr(module, name, value)
    settings = Settings(redis={"url": redis_url})
    sent = Sent()
    dispatcher = Dispatcher(settings, store, sent)  # type: ignore[arg-type]  has the used part of a publisher
    ends = await store.now_ms() + 600_000
    await store.redis.zadd(store.keys.workers, {"w1": ends})
    await store.redis.hset(store.keys.worker_info, "w1", b'{"concurrency": 64, "role": "worker"}')
    running = asyncio.create_task(dispatcher.run())
    yield Dispatching(store, sent)
    dispatcher.stop()
    await asyncio.wait_for(running, WITHIN_S)


@pytest.mark.parametrize(
    "damage",
    [
        {"spec": '{"schema":99,"future":true}', "run": "x"},
        {"spec": "garbage"},
        {"spec": "[1,2]"},
        {"created_at": "soon"},
        {"priority": "first"},
        {"queued": "many"},
    ],
    ids=lambda damage: next(iter(damage)) + "=" + next(iter(damage.values())),
)
async def test_a_batch_that_cannot_be_read_is_set_aside_and_others_go_on(
    dispatching: Dispatching, damage: dict[str, str]
) -> None:
    await dispatching.submit("bad")
    await dispatching.store.redis.hset(dispatching.store.keys.batch("bad").meta, mapping=damage)
    await dispatching.submit("good")
    await dispatching.until_sent("good", 4)
    await dispatching.finish("good")


async def test_a_foreign_batch_is_named_in_an_alarm_which_goes_when_it_is_repaired(dispatching: Dispatching) -> None:
    meta = dispatching.store.keys.batch("bad").meta
    await dispatching.store.redis.hset(meta, mapping={"spec": "future", "run": "x"})
    await dispatching.store.redis.zadd(dispatching.store.keys.active, {"bad": 1})
    message = await dispatching.alarm(AlarmKind.UNREADABLE_BATCH, "bad")
    assert "set aside, others go on" in message
    await dispatching.store.redis.zrem(dispatching.store.keys.active, "bad")
    await dispatching.until_clear()


async def test_an_unreadable_batch_that_is_cancelled_leaves_the_active_ones(dispatching: Dispatching) -> None:
    await dispatching.store.redis.hset(dispatching.store.keys.batch("bad").meta, mapping={"spec": "future", "run": "x"})
    await dispatching.store.redis.zadd(dispatching.store.keys.active, {"bad": 1})
    await dispatching.alarm(AlarmKind.UNREADABLE_BATCH, "bad")
    await Batches(dispatching.store).cancel_batch("bad")
    async with asyncio.timeout(WITHIN_S):
        while await dispatching.store.redis.zcard(dispatching.store.keys.active):  # noqa: ASYNC110  as above
            await asyncio.sleep(0.05)
    await dispatching.until_clear()


@pytest.mark.parametrize("value", ["garbage", "", "x|1|2|3|e", "r|one|2|3|e|w1", "w|1|2|3|weather|nobody"])
async def test_a_state_that_cannot_be_read_is_put_aside_and_its_rollout_runs_again(
    dispatching: Dispatching, value: str
) -> None:
    await dispatching.submit("b")
    await dispatching.until_sent("b", 4)
    await dispatching.store.redis.hset(dispatching.store.keys.batch("b").live, "2:0", value)
    message = await dispatching.alarm(AlarmKind.UNREADABLE_ROLLOUT, "b")
    assert "2:0" in message
    await dispatching.finish("b")
    status = await Batches(dispatching.store).status("b")
    assert status.ledger.balanced
    assert status.ledger.succeeded == 4


@pytest.mark.parametrize(
    ("line", "entry"),
    [("backlog", "garbage"), ("later", "garbage"), ("parked", "garbage"), ("backlog", "0:zero:1:weather")],
)
async def test_an_entry_of_a_line_that_cannot_be_read_is_passed_over(
    dispatching: Dispatching, line: str, entry: str
) -> None:
    keys = dispatching.store.keys.batch("b")
    if line == "backlog":
        await dispatching.store.redis.rpush(keys.backlog, entry)
    else:
        await dispatching.store.redis.zadd(getattr(keys, line), {entry: 0})
    await dispatching.submit("b")
    await dispatching.finish("b")


async def test_records_that_cannot_be_read_are_passed_over_and_named(dispatching: Dispatching) -> None:
    redis, keys = dispatching.store.redis, dispatching.store.keys
    await redis.hset(keys.worker_info, "w2", "garbage")
    await redis.zadd(keys.workers, {"w2": await dispatching.store.now_ms() + 600_000})
    await redis.hset(keys.breakers, "policy|p", "garbage")
    await redis.hset(keys.breakers, "no kind", "[]")
    await redis.hset(keys.policies, "odd", '{"future": 1}')
    await redis.hset(keys.share, "run", "nan")
    await redis.hset(keys.judge_replica_info, "judge one", "[]")
    await redis.hset(keys.alarms_standing, "garbage", "garbage")
    message = await dispatching.alarm(AlarmKind.UNREADABLE_RECORD, None)
    for name in (
        "worker w2",
        "breaker policy|p",
        "breaker no kind",
        "policy odd",
        "replica judge one",
        "alarm garbage",
    ):
        assert name in message
    await dispatching.submit("b")
    await dispatching.finish("b")


async def test_a_batch_whose_keys_are_of_another_type_is_set_aside(dispatching: Dispatching) -> None:
    for name in ("meta", "live", "later"):
        await dispatching.submit(name)
        key = getattr(dispatching.store.keys.batch(name), name)
        await dispatching.store.redis.delete(key)
        await dispatching.store.redis.set(key, "text")
    for name in ("meta", "later"):
        await dispatching.alarm(AlarmKind.UNREADABLE_BATCH, name)
    await dispatching.submit("good")
    await dispatching.finish("good")
