"""Agreement of the farm's outcome counters with the ledgers, for every kind of end and removal."""

from __future__ import annotations

from collections import Counter

import orjson
import pytest

from gym.ids import parse_member
from gym.rollout import Outcome
from gym.state.ledger import ends
from gym.state.ledger.batches import Batches
from gym.state.ledger.cancellation import StopCause, cancel
from gym.state.ledger.ended_batches import EndedBatches
from gym.state.ledger.judging import Handover, Judging, RejudgedResult
from gym.state.ledger.rollouts import Claim, Commit, Rollouts
from gym.state.ledger.submission import NewBatch, StagedRow, Staging
from gym.state.redis.store import Store
from gym.task import RowHeader

pytestmark = pytest.mark.anyio


class Farm:
    """Batches of one row each, and their counters."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.rollouts, self.batches, self.judging = Rollouts(store), Batches(store), Judging(store)
        self.names: list[str] = []

    async def submit(self, batch_id: str, samples: int) -> None:
        staging = Staging(self.store, batch_id)
        header = RowHeader(task_id=None, environment="weather", num_samples=samples)
        await staging.add([StagedRow(header=header, raw=b"{}", digest="")])
        spec = NewBatch(spec={}, digest="d", run="r", priority=5, weight=1.0, policy="p")
        await staging.publish(create=spec, seal=True)
        self.names.append(batch_id)

    async def claim(self, batch_id: str, most: int, worker: str = "w1") -> list[Claim]:
        taken = await self.rollouts.take(batch_id, most)
        return await self.rollouts.claim(batch_id, worker, [(item.member, item.attempt) for item in taken])

    async def commit(self, claim: Claim, outcome: str, early_stop: int = 0) -> None:
        commit = Commit(
            outcome=outcome, record=b"{}", trajectory=b"", usable=outcome == "succeeded", early_stop=early_stop, sums={}
        )
        await self.store.run_many([self.rollouts.commit_call(claim, commit)])

    async def counted(self) -> Counter[str]:
        """Return the counters as a scrape of the metrics reads them."""
        active = {}
        for name in await self.store.redis.zrange(self.store.keys.active, 0, -1):
            values = await self.store.redis.hmget(self.store.keys.batch(name.decode()).meta, ends.FIELDS)
            active[name.decode()] = {f: int(v or 0) for f, v in zip(ends.FIELDS, values, strict=True)}
        return +await ends.read_ends(self.store, active)

    async def in_ledgers(self) -> Counter[str]:
        found: Counter[str] = Counter()
        for name in self.names:
            ledger = (await self.batches.status(name)).ledger.as_dict()
            found.update({outcome.value: ledger[outcome] for outcome in Outcome})
        return +found

    async def retire(self, batch_id: str, keep_s: float = 60.0) -> None:
        await EndedBatches(self.store).retire(batch_id, created_at=1, keep_s=keep_s)


@pytest.fixture
def farm(store: Store) -> Farm:
    return Farm(store)


async def test_every_way_to_end_is_counted_as_the_ledger_counts_it(farm: Farm) -> None:
    await farm.submit("mixed", 6)
    first, second, _dying = await farm.claim("mixed", 3)
    await farm.commit(first, "succeeded")
    await farm.commit(second, "failed")
    lost = await farm.rollouts.recover("mixed", overdue_ms=0, max_attempts=1, dead_workers=["w1"], suspect_after=9)
    assert (lost.requeued, lost.failed) == (0, 1)
    await farm.batches.cancel_rollout(parse_member("mixed", "0:5"))
    await cancel(farm.store, "mixed", "batch", "*", cause=StopCause.DEADLINE)
    await farm.submit("stopped", 3)
    [early] = await farm.claim("stopped", 1)
    await farm.commit(early, "succeeded", early_stop=1)
    expected = {"succeeded": 2, "failed": 2, "cancelled": 3, "expired": 2}
    assert await farm.counted() == await farm.in_ledgers() == expected


async def test_a_requeued_rollout_is_counted_at_each_end_and_the_difference_is_said(farm: Farm) -> None:
    await farm.submit("b", 1)
    [claim] = await farm.claim("b", 1)
    await farm.commit(claim, "failed")
    await farm.retire("b")
    assert await farm.batches.requeue("b", [(claim.member, claim.attempt, "weather", b"{}\n")]) == 1
    assert await farm.counted() == {"failed": 1, "again|failed": 1}
    [again] = await farm.claim("b", 1)
    await farm.commit(again, "succeeded")
    assert await farm.counted() == {"failed": 1, "again|failed": 1, "succeeded": 1}
    await farm.retire("b")
    assert await farm.counted() == {"failed": 1, "again|failed": 1, "succeeded": 1}


async def test_a_result_that_is_judged_again_is_counted_as_taken_back(farm: Farm) -> None:
    await farm.submit("b", 1)
    [claim] = await farm.claim("b", 1)
    handover = Handover(judge="j", record=b"{}", ask=b"i", trajectory=b"")
    await farm.store.run_many([farm.judging.ask_call(claim, handover)])
    sent = await farm.judging.take("b", "j", 1)
    [judged] = await farm.judging.claim("b", "j1", "c1", sent)
    commit = Commit(outcome="succeeded", record=b"{}", trajectory=b"", usable=True, early_stop=0, sums={})
    await farm.store.run_many([farm.rollouts.commit_call(judged, commit)])
    [(cursor, _)] = await farm.store.redis.xrange(farm.store.keys.batch("b").log)
    item = RejudgedResult(
        member=claim.member,
        cursor=cursor.decode(),
        environment="weather",
        judge="j",
        replaced=False,
        outcome="succeeded",
        sums={},
        record=orjson.dumps({}),
    )
    assert await farm.judging.rejudge("b", [item]) == 1
    assert await farm.counted() == {"succeeded": 1, "again|succeeded": 1}
    await farm.batches.cancel_batch("b")  # it gets its result back
    assert await farm.counted() == {"succeeded": 2, "again|succeeded": 1}
    assert await farm.in_ledgers() == {"succeeded": 1}


async def test_counters_stay_when_a_batch_goes_and_another_of_its_name_comes(farm: Farm) -> None:
    for round_number in (1, 2):
        await farm.submit("b", 2)
        await farm.batches.cancel_batch("b")
        assert await farm.counted() == {"cancelled": 2 * round_number}
        await farm.retire("b")
        assert await farm.counted() == {"cancelled": 2 * round_number}
        kept = EndedBatches(farm.store)
        assert await kept.remove("b", await farm.store.now_ms())
        await kept.removed("b")
        assert await farm.counted() == {"cancelled": 2 * round_number}


async def test_folding_a_batch_twice_counts_it_once(farm: Farm) -> None:
    await farm.submit("b", 2)
    await farm.batches.cancel_batch("b")
    for _ in range(2):
        await ends.fold(farm.store, "b")
        assert await farm.counted() == {"cancelled": 2}
