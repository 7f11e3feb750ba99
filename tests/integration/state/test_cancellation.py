"""Cancellation of large batches and groups: in bounded steps, and no rollout starts meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import orjson
import pytest

from gym.errors import Conflict, Invalid, Overloaded
from gym.ids import GroupRef, parse_member
from gym.results.blobs import BlobStore
from gym.state.ledger import cancellation
from gym.state.ledger.batches import Batches
from gym.state.ledger.cancellation import STEP_ROLLOUTS, Cancellation, cancel, step_stops
from gym.state.ledger.feed import Feed, LeaseUnit
from gym.state.ledger.judging import Handover, Judging
from gym.state.ledger.rollouts import Claim, Commit, Rollouts
from gym.state.ledger.submission import NewBatch, StagedRow, Staging
from gym.state.redis.store import Store
from gym.state.repair.audit import SEARCHED_PER_STEP, Audits
from gym.task import RowHeader

pytestmark = pytest.mark.anyio
SAMPLES = 1000


class Large:
    """A batch of rows with many samples."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.batches, self.rollouts, self.judging = Batches(store), Rollouts(store), Judging(store)

    async def submit(self, rows: int, samples: int = SAMPLES) -> None:
        staging = Staging(self.store, "b")
        header = RowHeader(task_id=None, environment="weather", num_samples=samples)
        await staging.add([StagedRow(header=header, raw=b"{}", digest="")] * rows)
        spec = NewBatch(spec={}, digest="d", run="r", priority=5, weight=1.0, policy="p")
        await staging.publish(create=spec, seal=True)

    async def claim(self, most: int) -> list[Claim]:
        claims: list[Claim] = []
        while len(claims) < most:
            taken = await self.rollouts.take("b", min(50, most - len(claims)))
            claims += await self.rollouts.claim("b", "w", [(item.member, item.attempt) for item in taken])
        return claims

    async def go_on(self) -> list[Cancellation]:
        """Take the steps that end the rest, as the dispatcher does."""
        steps = []
        while not steps or steps[-1].left:
            steps.append(await cancel(self.store, "b", "batch", "*", go_on=True))
            assert (await self.batches.status("b")).ledger.balanced
        return steps

    async def ledger(self) -> dict[str, int]:
        return {name: count for name, count in (await self.batches.status("b")).ledger.as_dict().items() if count}

    async def left_in_lines(self) -> Sequence[int]:
        keys, redis = self.store.keys.batch("b"), self.store.redis
        return [
            await redis.llen(keys.backlog), await redis.zcard(keys.later), await redis.zcard(keys.parked),
            await redis.hlen(keys.live), await redis.zcard(keys.awaiting), await redis.hlen(keys.stops),
        ]  # fmt: skip


@pytest.fixture
def large(store: Store) -> Large:
    return Large(store)


async def test_a_large_batch_is_cancelled_in_steps_of_so_many_rollouts(large: Large) -> None:
    await large.submit(3)
    first = await large.batches.cancel_batch("b")
    assert (first.stopped, first.left) == (STEP_ROLLOUTS, 3 * SAMPLES - STEP_ROLLOUTS)
    steps = await large.go_on()
    assert max(step.stopped for step in steps) == STEP_ROLLOUTS
    assert await large.ledger() == {"submitted": 3 * SAMPLES, "cancelled": 3 * SAMPLES}
    assert (await large.batches.status("b")).ended
    assert not any(await large.left_in_lines())


async def test_what_waits_runs_is_judged_and_is_parked_is_all_ended(large: Large) -> None:
    await large.submit(2)
    claims = await large.claim(700)
    handover = Handover(judge="j", record=b"{}", ask=b"i", trajectory=b"")
    await large.store.run_many([large.judging.ask_call(claim, handover) for claim in claims[:300]])
    await large.store.run_many([large.rollouts.retry_call(claim, b"", 60.0) for claim in claims[300:600]])
    await large.rollouts.take("b", 1, parked=["weather"])
    await large.batches.cancel_batch("b")
    await large.go_on()
    assert await large.ledger() == {"submitted": 2 * SAMPLES, "cancelled": 2 * SAMPLES}
    assert not any(await large.left_in_lines())


async def test_nothing_of_a_batch_starts_from_the_moment_of_its_cancellation(large: Large) -> None:
    await large.submit(2)
    taken = await large.rollouts.take("b", 50)
    [running] = await large.claim(1)
    await large.batches.cancel_batch("b")
    assert await large.rollouts.take("b", 50) == []
    assert await large.rollouts.claim("b", "w", [(item.member, item.attempt) for item in taken]) == []
    assert await large.rollouts.still_mine([running]) == [False]


async def test_many_who_cancel_a_batch_leave_it_to_one(large: Large) -> None:
    await large.submit(3)
    await large.batches.cancel_batch("b")
    others = [await large.batches.cancel_batch("b") for _ in range(3)]
    assert [other.stopped for other in others] == [0, 0, 0]
    assert {other.left for other in others} == {3 * SAMPLES - STEP_ROLLOUTS}


async def test_a_rollout_that_ends_while_its_batch_is_cancelled_keeps_its_result(large: Large) -> None:
    await large.submit(2)
    claims = await large.claim(700)
    await large.batches.cancel_batch("b")
    commit = Commit(outcome="succeeded", record=b"{}", trajectory=b"", usable=True, early_stop=0, sums={})
    answers = await large.store.run_many([large.rollouts.commit_call(claim, commit) for claim in claims])
    kept = sum(answer[0] == 1 for answer in answers)
    assert 0 < kept < len(claims)
    await large.go_on()
    assert await large.ledger() == {
        "submitted": 2 * SAMPLES, "succeeded": kept, "cancelled": 2 * SAMPLES - kept
    }  # fmt: skip


async def test_a_batch_that_is_being_cancelled_is_not_requeued(large: Large) -> None:
    await large.submit(1)
    [claim] = await large.claim(1)
    commit = Commit(outcome="failed", record=b"{}", trajectory=b"", usable=False, early_stop=0, sums={})
    await large.store.run_many([large.rollouts.commit_call(claim, commit)])
    await large.batches.cancel_batch("b")
    failed = [(claim.member, claim.attempt, "weather", b"{}\n")]
    with pytest.raises(Conflict, match="being cancelled"):
        await large.batches.requeue("b", failed)
    await large.go_on()
    assert await large.batches.requeue("b", failed) == 1


async def test_a_large_group_is_stopped_in_steps_and_none_of_it_starts_meanwhile(large: Large) -> None:
    await large.submit(2)
    taken = await large.rollouts.take("b", 20)
    done = await large.batches.cancel_group(GroupRef("b", 0))
    assert (done.stopped, done.left) == (0, SAMPLES)
    assert await large.rollouts.claim("b", "w", [(item.member, item.attempt) for item in taken]) == []
    others: list[str] = []
    while not others:
        others = [item.member for item in await large.rollouts.take("b", 5)]
    assert {member.partition(":")[0] for member in others} == {"1"}
    steps = 0
    while await step_stops(large.store, "b"):
        steps += 1
    assert steps + 1 == SAMPLES / STEP_ROLLOUTS
    assert await large.ledger() == {"submitted": 2 * SAMPLES, "queued": SAMPLES, "cancelled": SAMPLES}


async def test_an_early_stop_of_a_large_group_is_left_to_the_steps(large: Large) -> None:
    await large.submit(1)
    [claim] = await large.claim(1)
    commit = Commit(outcome="succeeded", record=b"{}", trajectory=b"", usable=True, early_stop=1, sums={})
    [(verdict, ended, stopped)] = await large.store.run_many([large.rollouts.commit_call(claim, commit)])
    assert (verdict, ended, stopped) == (1, 0, 0)
    assert await large.rollouts.take("b", 5) == []
    while await step_stops(large.store, "b"):
        pass
    assert await large.ledger() == {"submitted": SAMPLES, "succeeded": 1, "cancelled": SAMPLES - 1}
    assert (await large.batches.status("b")).ended


async def test_a_large_group_that_was_cancelled_before_it_came_never_starts(large: Large) -> None:
    await large.batches.cancel_group(GroupRef("b", 0))
    await large.submit(1)
    assert await large.rollouts.take("b", 5) == []
    while await step_stops(large.store, "b"):
        pass
    assert await large.ledger() == {"submitted": SAMPLES, "cancelled": SAMPLES}


async def test_tombstones_are_limited(large: Large, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cancellation, "MOST_TOMBSTONES", 3)
    for row in range(3):
        await large.batches.cancel_rollout(parse_member("b", f"{row}:0"))
    with pytest.raises(Overloaded):
        await large.batches.cancel_rollout(parse_member("b", "3:0"))
    await large.batches.cancel_rollout(parse_member("b", "2:0"))
    for name in ("c", "d"):
        await large.batches.cancel_batch(name)
    with pytest.raises(Overloaded):
        await large.batches.cancel_batch("e")
    await large.batches.cancel_batch("d")
    assert not await large.store.redis.exists(large.store.keys.batch("e").tombs)


async def test_a_search_for_what_nothing_holds_goes_on_from_where_its_last_step_ended(large: Large) -> None:
    await large.submit(12)
    keys = large.store.keys.batch("b")
    await large.store.redis.delete(keys.backlog)
    audits = Audits(large.store)
    search = await audits.adopt("b")
    assert search is not None
    assert search.goes_on_at is not None
    assert await large.store.redis.hget(keys.meta, "search") == search.goes_on_at.encode()
    while search.goes_on_at is not None:
        search = await audits.adopt_step("b", search.goes_on_at)
        assert search is not None
        assert len(search.members) <= SEARCHED_PER_STEP
    assert await large.store.redis.zcard(keys.later) == 12 * SAMPLES
    assert not await large.store.redis.hexists(keys.meta, "search")


async def test_samples_of_a_group_that_is_being_stopped_are_not_taken_for_lost(large: Large) -> None:
    await large.submit(1)
    await large.batches.cancel_group(GroupRef("b", 0))
    assert await large.rollouts.take("b", 5) == []
    [held] = await Audits(large.store).count({"b": "0"})
    assert held.backlog_rollouts is None
    search = await Audits(large.store).adopt("b")
    assert search is not None
    assert search.members == ()


async def test_what_dead_workers_ran_is_taken_back_in_steps(large: Large) -> None:
    await large.submit(2)
    await large.claim(1200)
    done = await large.rollouts.recover("b", overdue_ms=0, max_attempts=3, dead_workers=["w"])
    assert done.requeued == 1200
    assert await large.ledger() == {"submitted": 2 * SAMPLES, "queued": 2 * SAMPLES}


async def ended_groups(large: Large) -> list[str]:
    await large.batches.cancel_batch("b")
    await large.go_on()
    log = await large.store.redis.xrange(large.store.keys.batch("b").log)
    return [entry_id.decode() for entry_id, _ in log]


async def test_the_ends_of_large_groups_are_found_in_bounded_calls(large: Large, tmp_path: Path) -> None:
    await large.submit(12)
    cursors = await ended_groups(large)
    last = cursors[SAMPLES - 1 :: SAMPLES]
    found = await Feed(large.store, BlobStore(tmp_path, inline_bytes=1000)).groups_ended("b", last)
    assert list(found) == last
    assert found[last[0]] == {"succeeded": 0, "failed": 0, "cancelled": SAMPLES, "expired": 0}


async def test_a_large_group_is_leased_and_acknowledged_whole_or_not_at_all(large: Large, tmp_path: Path) -> None:
    await large.submit(3)
    await ended_groups(large)
    feed = Feed(large.store, BlobStore(tmp_path, inline_bytes=1000))
    lease = await feed.lease("b", "c", most=2, ttl_s=60, unit=LeaseUnit.GROUP)
    names = [orjson.loads(record)["rollout_id"] for record in lease.records]
    assert len(set(names)) == len(names) == 2 * SAMPLES
    with pytest.raises(Invalid, match=f"{SAMPLES - 1} of the {SAMPLES}"):
        await feed.ack("b", "c", rollout_ids=names[:-1])
    assert await feed.ack("b", "c", rollout_ids=names) == 2 * SAMPLES
    rest = await feed.lease("b", "c", most=2, ttl_s=60, unit=LeaseUnit.GROUP)
    assert len(rest.records) == SAMPLES
