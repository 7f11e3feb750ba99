"""Publication of many rows: visible and counted at one moment, then bounded steps that any process may take."""

from __future__ import annotations

import asyncio

import pytest

from gym.errors import Conflict
from gym.state.ledger import publication
from gym.state.ledger.batches import Batches
from gym.state.ledger.publication import AT_ONCE, check_tasks, publish_step
from gym.state.ledger.rollouts import Rollouts
from gym.state.ledger.submission import NewBatch, StagedRow, Staging, SubmissionResult
from gym.state.redis.store import PUBLISH, Store
from gym.state.repair.audit import Audits
from gym.task import RowHeader

pytestmark = pytest.mark.anyio
SPEC = NewBatch(spec={}, digest="d", run="r", priority=5, weight=1.0, policy="p")
MANY = 3 * AT_ONCE + 7


def rows(count: int, *, named_from: int | None = None, digest: str = "x", samples: int = 2) -> list[StagedRow]:
    return [
        StagedRow(
            header=RowHeader(
                task_id=None if named_from is None else f"t{named_from + number}",
                environment="weather",
                num_samples=samples,
            ),
            raw=b"{}",
            digest=digest,
        )
        for number in range(count)
    ]


async def publish(store: Store, staged: list[StagedRow], *, create: bool = False) -> SubmissionResult:
    staging = Staging(store, "b")
    for first in range(0, len(staged), 400):
        await staging.add(staged[first : first + 400])
    return await staging.publish(create=SPEC if create else None, seal=False)


async def queued(store: Store) -> int:
    status = await Batches(store).status("b")
    assert status.ledger.balanced
    return status.ledger.queued


async def lined(store: Store) -> list[str]:
    return [entry.decode() for entry in await store.redis.lrange(store.keys.batch("b").backlog, 0, -1)]


async def test_many_rows_are_published_in_order(store: Store) -> None:
    done = await publish(store, rows(MANY), create=True)
    assert (done.accepted, done.submitted, done.created) == (MANY, 2 * MANY, True)
    assert await queued(store) == 2 * MANY
    assert await lined(store) == [f"{row}:0:2:weather" for row in range(MANY)]
    assert [key async for key in store.redis.scan_iter("*stage:*") if not key.endswith(b":done")] == []


async def test_repeats_in_a_large_request_are_dropped_and_the_others_keep_their_order(store: Store) -> None:
    await publish(store, rows(10, named_from=AT_ONCE), create=True)
    done = await publish(store, rows(MANY, named_from=0))
    assert (done.accepted, done.repeated, done.submitted) == (MANY - 10, 10, 2 * MANY)
    assert await queued(store) == 2 * MANY
    numbers = [int(entry.partition(":")[0]) for entry in await lined(store)]
    assert numbers == sorted(numbers)
    assert len(numbers) == MANY
    assert await store.redis.hlen(store.keys.batch("b").rows) == MANY
    again = await publish(store, rows(MANY, named_from=0))
    assert (again.accepted, again.repeated) == (0, MANY)


async def test_a_conflict_in_a_large_request_adds_nothing_and_lets_others_in(store: Store) -> None:
    await publish(store, rows(1, named_from=MANY - 1, digest="other"), create=True)
    with pytest.raises(Conflict):
        await publish(store, rows(MANY, named_from=0))
    assert await queued(store) == 2
    assert await store.redis.hlen(store.keys.batch("b").rows) == 1
    assert (await publish(store, rows(1, named_from=0))).accepted == 1


async def test_others_go_on_where_a_process_died_that_was_publishing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def die(*_: object) -> None:
        raise ConnectionError("the process is gone")

    with monkeypatch.context() as patched:
        patched.setattr("gym.state.ledger.submission.finish", die)
        with pytest.raises(ConnectionError):
            await publish(store, rows(MANY), create=True)
    assert await queued(store) == 2 * MANY
    [held] = await Audits(store).count({"b": "0"})
    assert held.backlog_rollouts is None
    request = (await store.redis.hget(store.keys.batch("b").meta, "publishing")).decode()
    assert await publish_step(store, "b", request) == MANY - AT_ONCE
    assert len(await Rollouts(store).take("b", 3)) == 3
    # the next one that publishes finishes it first
    await publish(store, rows(1))
    assert [entry.partition(":")[0] for entry in await lined(store)][-2:] == [str(MANY - 1), str(MANY)]


async def test_nothing_is_published_between_the_steps_that_compare_task_ids(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publication, "TURN_MS", 300)
    await publish(store, rows(1), create=True)
    large = Staging(store, "b")
    await large.add(rows(AT_ONCE + 1, named_from=0))
    assert await check_tasks(store, "b", large._request_id, AT_ONCE + 1) == ("checked", "")
    small = asyncio.create_task(publish(store, rows(1, named_from=0)))
    done, _ = await asyncio.wait([small], timeout=0.1)
    assert not done
    # the large one was never published, and does not keep others out for ever
    assert (await asyncio.wait_for(small, 10)).accepted == 1


async def test_a_repeated_publication_answers_as_the_first_did(store: Store) -> None:
    answers = []

    class Twice(Store):
        async def run(self, script, keys, args):  # type: ignore[no-untyped-def]
            answer = await super().run(script, keys, args)
            if script is PUBLISH:
                answers.append(answer)
                answers.append(answer := await super().run(script, keys, args))
            return answer

    done = await publish(Twice(store.redis, store.keys), rows(MANY), create=True)
    assert done.accepted == MANY
    assert answers[0][1:4] == answers[1][1:4]
    assert await queued(store) == 2 * MANY
    assert len(await lined(store)) == MANY
