"""Several outcomes in one script call; `test_transitions` covers their effects in any order."""

from __future__ import annotations

import math

import pytest
from redis.exceptions import ResponseError

from gym.state.ledger.rollouts import Claim, Commit, Rollouts
from gym.state.ledger.submission import NewBatch, StagedRow, Staging
from gym.state.redis.store import MOST_JOINED, MOST_JOINED_BYTES, Store
from gym.task import RowHeader

pytestmark = pytest.mark.anyio


def outcome(trajectory: bytes = b"", **sums: float) -> Commit:
    return Commit(outcome="succeeded", record=b"{}", trajectory=trajectory, usable=True, early_stop=0, sums=sums)


class Books:
    """A batch whose rollouts all run on one worker."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.rollouts = Rollouts(store)
        self.keys = store.keys.batch("b")

    async def running(self, samples: int) -> list[Claim]:
        staging = Staging(self.store, "b")
        header = RowHeader(task_id=None, environment="e", num_samples=samples)
        await staging.add([StagedRow(header=header, raw=b"{}", digest="")])
        await staging.publish(
            create=NewBatch(spec={}, digest="d", run="r", priority=5, weight=1.0, policy="p"), seal=True
        )
        taken = await self.rollouts.take("b", samples)
        return await self.rollouts.claim("b", "w", [(one.member, one.attempt) for one in taken])

    async def commit(self, *outcomes: tuple[Claim, Commit]) -> list[object]:
        answers = await self.store.run_many([self.rollouts.commit_call(*each) for each in outcomes])
        return [answer if isinstance(answer, Exception) else answer[0] for answer in answers]

    async def counters(self) -> dict[str, int]:
        names = ["running", "succeeded"]
        values = await self.store.redis.hmget(self.keys.meta, names)
        return {name: int(value or 0) for name, value in zip(names, values, strict=True)}

    async def sums(self) -> dict[str, float]:
        return {
            name.decode().removeprefix("e|"): float(value)
            for name, value in (await self.store.redis.hgetall(self.keys.stats)).items()
        }

    async def scripts_run(self) -> int:
        return int((await self.store.redis.info("commandstats"))["cmdstat_evalsha"]["calls"])


@pytest.fixture
def books(store: Store) -> Books:
    return Books(store)


async def test_sums_are_of_what_was_committed_and_of_nothing_else(books: Books) -> None:
    first, second, third = await books.running(3)
    zombie = outcome(run=100)
    done = [(first, outcome(run=1, total_s=0.5)), (second, outcome(run=1, total_s=0.25)), (first, zombie)]
    assert await books.commit(*done) == [1, 1, 2]
    assert await books.commit((second, zombie), (third, outcome(run=1, total_s=1))) == [2, 1]
    assert await books.sums() == {"ended": 3, "run": 3, "total_s": 1.75}
    assert await books.counters() == {"running": 0, "succeeded": 3}


async def test_one_that_cannot_be_committed_leaves_the_others_alone(books: Books) -> None:
    claims = await books.running(3)
    answers = await books.commit(*((claim, outcome(run=math.nan if claim is claims[1] else 1)) for claim in claims))
    assert isinstance(answers.pop(1), ResponseError)
    assert answers == [1, 1]
    assert await books.counters() == {"running": 1, "succeeded": 2}
    assert (await books.sums())["run"] == 2


async def test_rewards_whose_sum_no_number_can_hold_are_committed(books: Books) -> None:
    claims = await books.running(4)
    assert await books.commit(*((claim, outcome(reward=1.7e308, run=1)) for claim in claims)) == [1] * 4
    assert await books.counters() == {"running": 0, "succeeded": 4}
    assert (await books.sums())["run"] == 4


async def test_a_claim_that_names_a_rollout_twice_gets_it_once(books: Books) -> None:
    [claim] = await books.running(1)
    await books.store.run_many([books.rollouts.retry_call(claim, b"", 0)])
    [taken] = await books.rollouts.take("b", 1)
    claims = await books.rollouts.claim("b", "w", [(taken.member, taken.attempt)] * 2)
    assert len(claims) == 1
    assert await books.counters() == {"running": 1, "succeeded": 0}


async def test_calls_are_joined_by_number_and_by_size(books: Books) -> None:
    claims = await books.running(MOST_JOINED + 3)
    before = await books.scripts_run()
    await books.commit(*((claim, outcome()) for claim in claims[:-2]))
    assert await books.scripts_run() - before == 2
    large = outcome(bytes(MOST_JOINED_BYTES // 2 + 1))
    before = await books.scripts_run()
    assert await books.commit(*((claim, large) for claim in claims[-2:])) == [1, 1]
    assert await books.scripts_run() - before == 2


async def test_calls_of_different_scripts_on_a_batch_keep_their_order(books: Books) -> None:
    first, second = await books.running(2)
    calls = [
        books.rollouts.commit_call(first, outcome()),
        books.rollouts.retry_call(second, b"", 0),
        books.rollouts.commit_call(second, outcome()),
    ]
    answers = await books.store.run_many(calls)
    assert [answers[0][0], answers[1], answers[2][0]] == [1, 1, 0]
