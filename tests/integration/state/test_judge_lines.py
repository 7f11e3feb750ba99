"""Queues of judges by the scripts alone: parked rollouts and their clock."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest

from gym.state.ledger.batches import Batches
from gym.state.ledger.breakers import Breaker, BreakerKey, judge_key, parked_in, parked_now, policy_key
from gym.state.ledger.judging import Handover, JudgeClaim, JudgeQueue, Judging
from gym.state.ledger.rollouts import Rollouts
from gym.state.ledger.submission import NewBatch, StagedRow, Staging
from gym.state.redis.store import Store
from gym.task import RowHeader

pytestmark = pytest.mark.anyio
LONG_S, OVER_S = 600.0, -1.0


@dataclass(frozen=True, slots=True)
class Books:
    """A batch whose four rollouts wait for the judge `j`."""

    store: Store
    judging: Judging
    batch_id: str = "b"

    async def lines(self) -> dict[str, JudgeQueue]:
        return (await self.judging.load([self.batch_id]))[self.batch_id]

    async def claim(self, sent: list[tuple[str, str]]) -> list[JudgeClaim]:
        return await self.judging.claim(self.batch_id, "w", sent[0][1], sent)

    async def again(self, claim: JudgeClaim, delay_s: float = 0.0, *, judge: str = "", goes_on: bool = False) -> None:
        call = self.judging.again_call("b", claim.member, claim.token, b"", delay_s, judge=judge, clock_goes_on=goes_on)
        assert await self.store.run_many([call]) == [1]


@pytest.fixture
async def books(store: Store) -> Books:
    rollouts, judging = Rollouts(store), Judging(store)
    staging = Staging(store, "b")
    header = RowHeader(task_id=None, environment="essay", num_samples=4)
    await staging.add([StagedRow(header=header, raw=b"{}", digest="")])
    spec = NewBatch(spec={}, digest="d", run="r", priority=5, weight=1.0, policy="p")
    await staging.publish(create=spec, seal=True)
    taken = await rollouts.take("b", 4)
    claims = await rollouts.claim("b", "w", [(one.member, one.attempt) for one in taken])
    handover = Handover(judge="j", record=b"{}", ask=b"iask", trajectory=b"itrajectory")
    await store.run_many([judging.ask_call(claim, handover) for claim in claims])
    return Books(store, judging)


async def test_what_is_parked_is_taken_by_probes_only_until_it_is_released(books: Books) -> None:
    await books.judging.park("b", "j", LONG_S)
    assert await books.lines() == {"j": JudgeQueue(waiting=4, asked=0, parked=4)}
    assert await books.judging.take("b", "j", 4) == []
    assert await books.judging.take_over("b", "j", 4) == []
    probed = {(await books.judging.probe("b", "j", seed=seed))[0][0] for seed in (2, 0)}
    assert probed == {"0:2", "0:0"}
    assert await books.lines() == {"j": JudgeQueue(waiting=2, asked=2, parked=2)}
    await books.judging.release("b", "j")
    assert await books.lines() == {"j": JudgeQueue(waiting=2, asked=2, parked=0)}
    assert {member for member, _ in await books.judging.take("b", "j", 4)} == {"0:1", "0:3"}


async def test_a_release_ends_the_wait_before_the_next_try_too(books: Books) -> None:
    [claim] = await books.claim(await books.judging.take("b", "j", 1))
    await books.again(claim, delay_s=1000.0)
    assert len(await books.judging.take("b", "j", 4)) == 3
    await books.judging.release("b", "j")
    assert [member for member, _ in await books.judging.take("b", "j", 4)] == [claim.member]


async def test_the_clock_of_what_was_never_asked_begins_when_it_is_parked(books: Books) -> None:
    before = await books.store.now_ms()
    await books.judging.park("b", "j", 0.05)
    sent: list[tuple[str, str]] = []
    async with asyncio.timeout(20):
        while len(sent) < 4:
            sent += await books.judging.take_over("b", "j", 2)
            await asyncio.sleep(0.005)
    claims = await books.claim(sent)
    assert all(before <= claim.began_at <= claim.now - 50 for claim in claims)


async def test_the_clock_goes_on_for_what_is_handed_back_since_its_judge_is_parked(books: Books) -> None:
    first, second = await books.claim(await books.judging.take("b", "j", 2))
    await books.again(first, goes_on=True)
    await books.again(second)
    sent = [one for one in await books.judging.take("b", "j", 4) if one[0] in (first.member, second.member)]
    again = {claim.member: claim.began_at for claim in await books.claim(sent)}
    assert again[first.member] == first.began_at
    assert again[second.member] >= first.now


async def test_a_probe_passes_over_what_has_no_time_left(books: Books) -> None:
    await books.judging.park("b", "j", OVER_S)
    assert await books.judging.probe("b", "j", seed=1) == []
    assert len(await books.judging.take_over("b", "j", 9)) == 4


async def test_who_waits_for_another_judge_now_stands_in_its_line(books: Books) -> None:
    [claim] = await books.claim(await books.judging.take("b", "j", 1))
    await books.again(claim, judge="k")
    assert await books.lines() == {"j": JudgeQueue(3, 0, 0), "k": JudgeQueue(1, 0, 0)}
    await books.judging.park("b", "k", LONG_S)
    assert await books.lines() == {"j": JudgeQueue(3, 0, 0), "k": JudgeQueue(1, 0, 1)}


async def test_counts_of_lines_are_mended_and_what_is_parked_stays_so(books: Books) -> None:
    await books.judging.park("b", "j", LONG_S)
    await books.judging.probe("b", "j", seed=0)
    await books.store.redis.hset(books.store.keys.batch("b").judges, "j|parked", 77)
    assert await books.judging.recover("b", overdue_ms=0, dead_workers=[]) == (0, 0)
    assert await books.lines() == {"j": JudgeQueue(waiting=3, asked=1, parked=3)}
    assert await books.judging.recover("b", overdue_ms=2**53, dead_workers=[]) == (0, 1)
    assert await books.lines() == {"j": JudgeQueue(waiting=4, asked=0, parked=3)}


async def test_what_waits_for_a_parked_judge_counts_as_parked_wherever_that_is_shown(books: Books) -> None:
    breaker = Breaker(key=judge_key("j"), failures=3, stage="judge", error="e", opened_at=1, next_probe_at=2)
    closed = Breaker(key=judge_key("k"), failures=2, stage="judge", error="e", opened_at=None, next_probe_at=0)
    shown = await parked_now(books.store, "b", [breaker, closed])
    assert (shown.count, shown.reasons) == (4, (breaker,))
    await books.store.redis.hset(
        books.store.keys.breakers,
        "judge|j",
        b'{"streak":["a"],"stage":"judge","error":"e","opened_at":1,"next_probe_at":2,"level":0}',
    )
    batches = Batches(books.store)
    [listed], _ = await batches.list()
    for status in (await batches.status("b"), listed):
        assert (status.parked.count, [each.key for each in status.parked.reasons]) == (4, [breaker.key])


def test_what_a_judge_parks_is_added_to_what_a_policy_or_an_environment_parks() -> None:
    def breaker(key: BreakerKey) -> Breaker:
        return Breaker(key=key, failures=3, stage="judge", error="e", opened_at=1, next_probe_at=2)

    policy, judge = policy_key("p"), judge_key("j")
    both = parked_in(10, policy, {"sql": 4}, [breaker(policy), breaker(judge)], {"j": 3, "k": 5})
    assert (both.count, [each.key for each in both.reasons]) == (13, [policy, judge])
    assert parked_in(0, policy, {}, [breaker(policy), breaker(judge)], {"j": 0}).reasons == ()
