"""Parking and poison rollouts by the scripts alone, one case at a time; `test_transitions` has combinations."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import orjson
import pytest

from gym.ids import RolloutRef, parse_member
from gym.state.ledger.batches import Batches
from gym.state.ledger.rollouts import Claim, Rollouts
from gym.state.ledger.submission import NewBatch, StagedRow, Staging
from gym.state.redis.store import Store
from gym.task import RowHeader

pytestmark = pytest.mark.anyio


@dataclass
class Batch:
    """A batch, and the actions of dispatcher, workers and clients on it."""

    store: Store
    rollouts: Rollouts
    batches: Batches
    batch_id: str = "b"

    async def submit(self, *environments: str, samples: int = 1) -> None:
        staging = Staging(self.store, self.batch_id)
        headers = [RowHeader(task_id=None, environment=name, num_samples=samples) for name in environments]
        await staging.add([StagedRow(header=header, raw=b"{}", digest="") for header in headers])
        spec = NewBatch(spec={}, digest="d", run="r", priority=5, weight=1.0, policy="p")
        await staging.publish(create=spec, seal=True)

    async def take(self, most: int, *parked: str, suspects: bool = True) -> list[str]:
        taken = await self.rollouts.take(self.batch_id, most, parked=parked, suspects=suspects)
        return [one.member for one in taken]

    async def parked(self, environment: str) -> int:
        counted = await self.store.redis.hget(self.store.keys.batch(self.batch_id).meta, f"parked|{environment}")
        return int(counted or 0)

    async def claim(self, worker: str, most: int = 100) -> list[Claim]:
        taken = await self.rollouts.take(self.batch_id, most)
        return await self.rollouts.claim(self.batch_id, worker, [(one.member, one.attempt) for one in taken])

    async def die(self, worker: str) -> tuple[int, int]:
        done = await self.rollouts.recover(
            self.batch_id, overdue_ms=0, max_attempts=3, dead_workers=[worker], suspect_after=2
        )
        return done.requeued, done.failed


@pytest.fixture
async def batch(redis_url: str) -> AsyncIterator[Batch]:
    store = Store.connect(redis_url)
    yield Batch(store, Rollouts(store), Batches(store))
    await store.close()


async def test_a_parked_environment_does_not_block_the_rest_of_its_batch(batch: Batch) -> None:
    await batch.submit(*["sql"] * 3000, "weather", "sql", "weather")
    taken: list[str] = []
    for _ in range(4):  # so much is parked by one call, and no more
        taken += await batch.take(10, "sql")
    assert taken == ["3000:0", "3002:0"]
    assert await batch.parked("sql") == 3001
    ledger = (await batch.batches.status("b")).ledger
    assert (ledger.queued, ledger.balanced) == (3003, True)
    assert await batch.take(2) == ["0:0", "1:0"]  # in their order, as soon as nothing is parked
    while await batch.take(1000):
        pass
    assert await batch.parked("sql") == 0


async def test_what_is_parked_is_cancelled_at_once_one_by_one_and_all_together(batch: Batch) -> None:
    await batch.submit("sql", "sql", "weather", samples=4)
    assert len(await batch.take(20, "sql")) == 4
    await batch.batches.cancel_rollout(_rollout("b", 0, 2))
    assert await batch.parked("sql") == 7
    await batch.batches.cancel_batch("b")
    status = await batch.batches.status("b")
    assert (status.ledger.cancelled, status.ended, await batch.parked("sql")) == (12, True, 0)


async def test_a_probe_takes_one_rollout_of_the_parked_environment_and_leaves_the_others(batch: Batch) -> None:
    await batch.submit("sql", "math", "sql", samples=3)
    assert await batch.take(9, "sql", "math") == []
    seen = set()
    for seed in range(6):
        [taken] = await batch.rollouts.probe("b", environment="sql", seed=seed, parked=["sql", "math"])
        seen.add(taken.member)
    assert seen == {"0:0", "0:1", "0:2", "2:0", "2:1", "2:2"}
    assert await batch.rollouts.probe("b", environment="sql", seed=0, parked=["sql", "math"]) == []
    assert await batch.parked("math") == 3


async def test_a_probe_of_a_policy_passes_over_parked_environments(batch: Batch) -> None:
    await batch.submit(*["sql"] * 200, "weather")
    [taken] = await batch.rollouts.probe("b", environment=None, seed=7, parked=["sql"])
    assert taken.environment == "weather"
    assert await batch.parked("sql") == 200
    [taken] = await batch.rollouts.probe("b", environment=None, seed=7, parked=[])  # released, though nothing took it
    assert taken.environment == "sql"


async def test_who_dies_in_company_twice_is_a_suspect_and_fails_only_where_it_dies_alone(batch: Batch) -> None:
    await batch.submit("sql", samples=2)
    for _ in range(2):
        assert len(await batch.claim("w")) == 2
        assert await batch.die("w") == (2, 0)
    killer, neighbour = await batch.claim("w")
    assert (killer.attempt, neighbour.attempt) == (3, 3)
    assert await batch.store.run_many([batch.rollouts.alone_call(killer)]) == [1]
    assert await batch.die("w") == (1, 1)
    [neighbour] = await batch.claim("w")
    assert neighbour.attempt == 3  # it had not begun, so that death was not its own
    [entry] = await batch.store.redis.xrange(batch.store.keys.batch("b").log)
    assert entry[1][b"m"].decode() == killer.member
    assert orjson.loads(entry[1][b"e"])["kind"] == "worker_lost"


async def test_an_attempt_ago_no_token_begins_a_suspect(batch: Batch) -> None:
    await batch.submit("sql")
    for _ in range(2):
        await batch.claim("w")
        await batch.die("w")
    [first] = await batch.claim("w")
    await batch.store.run_many([batch.rollouts.retry_call(first, b"", 0)])
    [second] = await batch.claim("w")
    assert first.attempt == second.attempt
    assert await batch.store.run_many([batch.rollouts.alone_call(first), batch.rollouts.alone_call(second)]) == [0, 1]


async def test_suspects_that_may_not_go_do_not_block_others(batch: Batch) -> None:
    await batch.submit("sql", "sql")
    for _ in range(2):
        assert [claim.member for claim in await batch.claim("w", 1)] == ["0:0"]
        await batch.die("w")
    assert await batch.take(2, suspects=False) == ["1:0"]


async def test_max_attempts_of_one_means_that_a_death_is_final(batch: Batch) -> None:
    await batch.submit("sql")
    await batch.claim("w")
    done = await batch.rollouts.recover("b", overdue_ms=0, max_attempts=1, dead_workers=["w"], suspect_after=2)
    assert (done.requeued, done.failed) == (0, 1)


async def test_failures_of_the_data_are_no_reason_to_give_up_after_a_death(batch: Batch) -> None:
    await batch.submit("sql")
    for _ in range(3):
        [claim] = await batch.claim("w")
        line = orjson.dumps({"kind": "verifier_error", "retryable": False})
        await batch.store.run_many([batch.rollouts.retry_call(claim, line, 0)])
    assert [claim.attempt for claim in await batch.claim("w")] == [4]
    assert await batch.die("w") == (1, 0)


async def test_an_attempt_is_given_back_where_the_rollout_waits_and_where_it_runs_again(batch: Batch) -> None:
    await batch.submit("sql", "sql")
    line = orjson.dumps({"kind": "model_unreachable", "retryable": True})
    waiting, running = await batch.claim("w")
    await batch.store.run_many([batch.rollouts.retry_call(claim, line, 0) for claim in (waiting, running)])
    [again] = [claim for claim in await batch.claim("w", 2) if claim.member == running.member]
    await batch.rollouts.bounce("b", [(waiting.member, 2)])
    refunds = [
        batch.rollouts.refund_call("b", claim.member, claim.attempt, claim.token) for claim in (waiting, running)
    ]
    await batch.store.run_many(refunds)
    await batch.store.run_many([batch.rollouts.retry_call(again, line, 0)])
    attempts = {claim.member: claim.attempt for claim in await batch.claim("w")}
    assert attempts[running.member] == 2  # one of its two failures is forgotten


def _rollout(batch_id: str, row: int, sample: int) -> RolloutRef:
    return parse_member(batch_id, f"{row}:{sample}")
