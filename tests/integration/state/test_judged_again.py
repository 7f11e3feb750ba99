"""Rejudging in the ledger: a result keeps its reward until there is a new verdict."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import orjson
import pytest

from gym.state.ledger.batches import Batches, cancel
from gym.state.ledger.cancellation import StopCause
from gym.state.ledger.judging import Handover, Judging, RejudgedResult
from gym.state.ledger.rollouts import Commit, Rollouts
from gym.state.ledger.submission import NewBatch, StagedRow, Staging
from gym.state.redis.store import Store
from gym.task import RowHeader

pytestmark = pytest.mark.anyio
RECORD = orjson.dumps({"reward": 0.25})
SUMS = {"scored": 1.0, "reward": 0.25, "passed": 0.0}


@dataclass(frozen=True, slots=True)
class Books:
    """A batch with one rollout, which was judged and is being judged again."""

    store: Store
    batches: Batches
    judging: Judging
    rollouts: Rollouts

    async def state(self) -> tuple[str, dict[str, int]]:
        """Return the batch's state, and the non-zero counters of its ledger."""
        status = await self.batches.status("b")
        return status.state, {name: number for name, number in status.ledger.as_dict().items() if number}

    async def sums(self) -> dict[str, float]:
        return (await self.batches.status("b")).environments["essay"]

    async def results(self) -> list[bytes]:
        entries = await self.store.redis.xrange(self.store.keys.batch("b").log)
        return [fields[b"j"] for _, fields in entries]


@pytest.fixture
async def books(redis_url: str) -> AsyncIterator[Books]:
    """Judged once with 0.25, and waiting for another verdict."""
    store = Store.connect(redis_url)
    found = Books(store, Batches(store), Judging(store), Rollouts(store))
    staging = Staging(store, "b")
    header = RowHeader(task_id=None, environment="essay", num_samples=1)
    await staging.add([StagedRow(header=header, raw=b"{}", digest="")])
    spec = NewBatch(spec={}, digest="d", run="r", priority=5, weight=1.0, policy="p")
    await staging.publish(create=spec, seal=True)
    [taken] = await found.rollouts.take("b", 1)
    [claim] = await found.rollouts.claim("b", "w", [(taken.member, taken.attempt)])
    handover = Handover(judge="one", record=b"{}", ask=b"iask", trajectory=b"itrajectory")
    await store.run_many([found.judging.ask_call(claim, handover)])
    sent = await found.judging.take("b", "one", 1)
    [judged] = await found.judging.claim("b", "j", "c1", sent)
    commit = Commit(outcome="succeeded", record=RECORD, trajectory=b"", usable=True, early_stop=0, sums=SUMS)
    await store.run_many([found.rollouts.commit_call(judged, commit)])
    [(cursor, _)] = await store.redis.xrange(store.keys.batch("b").log)
    item = RejudgedResult(
        member=taken.member,
        cursor=cursor.decode(),
        environment="essay",
        judge="two",
        replaced=True,
        outcome="succeeded",
        sums=SUMS,
        record=RECORD,
    )
    assert await found.judging.rejudge("b", [item, item]) == 1
    yield found
    await store.close()


async def test_it_is_judging_again_and_counted_once(books: Books) -> None:
    assert await books.state() == ("running", {"submitted": 1, "judging": 1})
    assert await books.results() == []
    sums = await books.sums()
    assert (sums["ended"], sums["scored"], sums["reward"]) == (0, 0, 0)


async def test_a_new_verdict_takes_the_place_of_the_old_one(books: Books) -> None:
    sent = await books.judging.take("b", "two", 1)
    [claim] = await books.judging.claim("b", "j", "c2", sent)
    assert (claim.record, claim.old_outcome, claim.old_sums, claim.replaced) == (RECORD, "succeeded", SUMS, True)
    new = orjson.dumps({"reward": 1.0})
    sums = {"scored": 1.0, "reward": 1.0, "passed": 1.0}
    commit = Commit(outcome="succeeded", record=new, trajectory=b"", usable=True, early_stop=0, sums=sums)
    await books.store.run_many([books.rollouts.commit_call(claim, commit)])
    assert await books.state() == ("done", {"submitted": 1, "succeeded": 1})
    assert await books.results() == [new]
    counted = await books.sums()
    assert (counted["ended"], counted["scored"], counted["reward"], counted["passed"]) == (1, 1, 1, 1)


@pytest.mark.parametrize("place", ["waiting", "sent", "with a worker"])
async def test_a_cancellation_gives_it_back_as_it_was(books: Books, place: str) -> None:
    if place != "waiting":
        sent = await books.judging.take("b", "two", 1)
        if place == "with a worker":
            await books.judging.claim("b", "j", "c2", sent)
    await books.batches.cancel_batch("b")
    assert await books.results() == [RECORD]
    assert (await books.state())[1] == {"submitted": 1, "succeeded": 1}
    sums = await books.sums()
    assert (sums["ended"], sums["scored"], sums["reward"]) == (1, 1, 0.25)
    assert await books.judging.load(["b"]) == {"b": {}}


async def test_a_deadline_leaves_it_to_its_judge(books: Books) -> None:
    await cancel(books.store, "b", "batch", "*", cause=StopCause.DEADLINE)
    assert (await books.state())[1] == {"submitted": 1, "judging": 1}
    assert len(await books.judging.take("b", "two", 1)) == 1


async def test_what_was_dropped_cannot_be_judged_again(books: Books) -> None:
    await books.batches.cancel_batch("b")
    await books.store.redis.delete(books.store.keys.batch("b").asks)
    [(cursor, _)] = await books.store.redis.xrange(books.store.keys.batch("b").log)
    item = RejudgedResult(
        member="0:0",
        cursor=cursor.decode(),
        environment="essay",
        judge="two",
        replaced=True,
        outcome="succeeded",
        sums=SUMS,
        record=RECORD,
    )
    assert await books.judging.rejudge("b", [item]) == 0
    assert await books.results() == [RECORD]
