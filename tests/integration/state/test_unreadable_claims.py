"""Claims whose stored row, tries or judging cannot be read: they end, and the rest of their slice runs."""

from __future__ import annotations

import orjson
import pytest

from gym.errors import ErrorKind
from gym.results.blobs import BlobStore
from gym.state.alarms import AlarmKind, Alarms
from gym.state.ledger.batches import Batches
from gym.state.ledger.judging import Handover, Judging
from gym.state.ledger.results import ResultLog, View
from gym.state.ledger.rollouts import Commit, Rollouts
from gym.state.ledger.submission import NewBatch, StagedRow, Staging
from gym.state.redis.store import Store
from gym.task import RowHeader

pytestmark = pytest.mark.anyio


async def submit(store: Store) -> None:
    staging = Staging(store, "b")
    header = RowHeader(task_id=None, environment="essay", num_samples=1)
    await staging.add([StagedRow(header=header, raw=b"{}", digest="")] * 4)
    await staging.publish(create=NewBatch(spec={}, digest="d", run="r", priority=5, weight=1.0, policy="p"), seal=True)


async def ended_kinds(store: Store) -> dict[str, str | None]:
    """Return the error kind of each result by row."""
    page = await ResultLog(store, BlobStore(None, inline_bytes=0)).page("b", after=None, limit=10, view=View.LIGHT)
    records = [orjson.loads(text) for text in page.records]
    return {each["rollout_id"].split(":")[1]: (each["error"] or {}).get("kind") for each in records}


@pytest.mark.parametrize("row", [b"garbage", b"", b"\xff\xfe 1 2 3\n{}", b"one essay 5 t\n{}", b"1 essay\n{}", b"7"])
async def test_a_row_that_cannot_be_read_fails_its_own_rollout(store: Store, row: bytes) -> None:
    await submit(store)
    rollouts = Rollouts(store)
    taken = await rollouts.take("b", 4)
    await store.redis.hset(store.keys.batch("b").rows, "2", row)
    claims = await rollouts.claim("b", "w", [(one.member, one.attempt) for one in taken])
    assert [claim.member for claim in claims] == ["0:0", "1:0", "3:0"]
    status = await Batches(store).status("b")
    assert (status.ledger.running, status.ledger.failed) == (3, 1)
    assert status.ledger.balanced
    assert await ended_kinds(store) == {"2": ErrorKind.BAD_ROW}
    [alarm] = (await Alarms(store).standing()).values()
    assert (alarm["kind"], alarm["rollouts"]) == (AlarmKind.UNREADABLE_RESULT, ["b:2:0"])
    again = await rollouts.claim("b", "w", [(one.member, one.attempt) for one in taken])
    assert [claim.token for claim in again] == [claim.token for claim in claims]


@pytest.mark.parametrize(
    "judging", [b"garbage", b"", b"7\n{}", b"[]\n{}", b"\xff\n\xff", b"{}\ngarbage", b'{"began":1}']
)
async def test_a_judging_that_cannot_be_read_fails_its_own_rollout(store: Store, judging: bytes) -> None:
    await submit(store)
    rollouts, judges = Rollouts(store), Judging(store)
    taken = await rollouts.take("b", 4)
    claims = await rollouts.claim("b", "w", [(one.member, one.attempt) for one in taken])
    handover = Handover(judge="j", record=b"{}", ask=b"iask", trajectory=b"itrajectory")
    await store.run_many([judges.ask_call(claim, handover) for claim in claims])
    sent = await judges.take("b", "j", 4)
    await store.redis.hset(store.keys.batch("b").judging, "2:0", judging)
    held = await judges.claim("b", "w", "c1", sent)
    assert sorted(claim.member for claim in held) == ["0:0", "1:0", "3:0"]
    status = await Batches(store).status("b")
    assert (status.ledger.judging, status.ledger.failed) == (3, 1)
    assert status.ledger.balanced
    commit = Commit(outcome="succeeded", record=b"{}", trajectory=b"", usable=True, early_stop=0, sums={})
    await store.run_many([rollouts.commit_call(claim, commit) for claim in held])
    status = await Batches(store).status("b")
    assert status.ended
    assert status.ledger.balanced
    page = await ResultLog(store, BlobStore(None, inline_bytes=0)).page("b", after=None, limit=10, view=View.LIGHT)
    assert orjson.loads(page.records[0])["error"]["kind"] == ErrorKind.RESULT_UNREADABLE


@pytest.mark.parametrize("line", [b"garbage", b"7", b"[]", b"\xff", b'{"attempt": 1, "ret'])
async def test_a_failed_attempt_that_cannot_be_read_is_shown_as_one(store: Store, line: bytes) -> None:
    await submit(store)
    await store.redis.hset(store.keys.batch("b").tries, "0:0", line)
    await Batches(store).cancel_batch("b")
    shown = await ResultLog(store, BlobStore(None, inline_bytes=0)).page("b", after=None, limit=10, view=View.LIGHT)
    assert len(shown.records) == 4
