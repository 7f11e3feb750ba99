"""Results with missing or damaged data in storage: reported, delivered without tokens, and run again on request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import msgpack
import pytest

from api.schemas.results import ResultAnswer
from gym.client import connect
from gym.errors import ErrorKind, NotFound
from gym.state.alarms import AlarmKind, Alarms
from gym.state.ledger.rollouts import Commit, Rollouts

pytestmark = pytest.mark.anyio
Row = dict[str, Any]
UNREADABLE = ErrorKind.RESULT_UNREADABLE.value

DAMAGES = [
    b"igarbage",
    b"i",
    b"i\x83\xa8segments\x91",  # truncated
    b"i\x80",
    b"i\x81\xa8segments\x07",
    b"i\x07",
    b"i\xc1",
    b"f5 b-x/gone.1 00000000",
    b"f5 ../../etc/passwd",
    b"f5",
    b"fmany b-x/0.0",
    b"\xff\xfe",
    b"x",
    b"7",
]


async def damaged_batch(http: httpx.AsyncClient, worker: Any, row: Row, damage: bytes | None, data_dir: Path) -> str:
    """Return a batch of five results, the third of which cannot be read."""
    answer = await http.post("/v1/batches", json={"rows": [row] * 5})
    batch_id = str(answer.json()["batch_id"])
    await worker.end_all(batch_id)
    keys = worker.store.keys.batch(batch_id)
    (data_dir / "blobs").mkdir(exist_ok=True)
    if damage is not None:
        await worker.store.redis.hset(keys.traj, "2:0", damage)
    return batch_id


def check(items: list[dict[str, Any]], batch_id: str) -> None:
    assert [item["rollout_id"] for item in items] == [f"{batch_id}:{number}:0" for number in range(5)]
    bad = items.pop(2)
    assert (bad["outcome"], bad["error"]["kind"], bad["error"]["retryable"]) == ("failed", UNREADABLE, True)
    assert (bad["reward"], bad["trajectory"], bad["segments"]) == (None, None, None)
    assert bad["recorded"] == {"outcome": "succeeded", "reward": 1.0, "error": None}
    assert all(item["reward"] == 1.0 and len(item["segments"]) == 1 and item["error"] is None for item in items)


@pytest.mark.both_carriers
@pytest.mark.parametrize("damage", DAMAGES, ids=repr)
async def test_a_page_and_a_lease_deliver_the_others_and_name_the_one(
    http: httpx.AsyncClient, worker: Any, row: Row, damage: bytes, tmp_path: Path
) -> None:
    batch_id = await damaged_batch(http, worker, row, damage, tmp_path)
    for view in ("training", "full"):
        answer = await http.get(f"/v1/batches/{batch_id}/results", params={"view": view})
        check(answer.json()["items"], batch_id)
    accept = {"accept": "application/msgpack"}
    answer = await http.get(f"/v1/batches/{batch_id}/results", params={"view": "training"}, headers=accept)
    check(msgpack.unpackb(answer.content)["items"], batch_id)
    for number, headers in enumerate(({}, accept)):
        answer = await http.post(
            f"/v1/batches/{batch_id}/lease",
            params={"view": "training"},
            json={"consumer": f"c{number}", "max": 10, "ttl_s": 60},
            headers=headers,
        )
        assert answer.status_code == 200
        check((msgpack.unpackb(answer.content) if headers else answer.json())["items"], batch_id)
    one = (await http.get(f"/v1/rollouts/{batch_id}:2:0")).json()
    assert one["error"]["kind"] == UNREADABLE
    [alarm] = (await Alarms(worker.store).standing()).values()
    assert (alarm["kind"], alarm["rollouts"]) == (AlarmKind.UNREADABLE_RESULT, [f"{batch_id}:2:0"])


@pytest.mark.parametrize("body", [{"error_kinds": [UNREADABLE]}, {"rollout_ids": 2}], ids=["by kind", "by name"])
async def test_one_that_cannot_be_read_runs_again_and_its_neighbours_do_not(
    http: httpx.AsyncClient, worker: Any, row: Row, body: dict[str, Any], tmp_path: Path
) -> None:
    batch_id = await damaged_batch(http, worker, row, b"igarbage", tmp_path)
    await http.get(f"/v1/batches/{batch_id}/results", params={"view": "training"})
    if "rollout_ids" in body:
        body = {"rollout_ids": [f"{batch_id}:2:0", f"{batch_id}:3:0"]}
    answer = await http.post(f"/v1/batches/{batch_id}/requeue", json=body)
    assert answer.json() == {"requeued": 1}
    status = (await http.get(f"/v1/batches/{batch_id}")).json()
    assert (status["ledger"]["queued"], status["ledger"]["succeeded"]) == (1, 4)
    assert await worker.end_all(batch_id) == 1
    page = (await http.get(f"/v1/batches/{batch_id}/results", params={"view": "training"})).json()
    assert page["done"]
    assert [item["outcome"] for item in page["items"]] == ["succeeded"] * 5
    assert sorted(item["attempt"] for item in page["items"]) == [1, 1, 1, 1, 2]
    assert await Alarms(worker.store).standing() == {}
    status = (await http.get(f"/v1/batches/{batch_id}")).json()
    assert status["ledger"]["succeeded"] == 5


@pytest.mark.parametrize("record", [b"garbage", b"", b"[]", b"7", b'{"rollout_id": "trunc', b"\xff\xfe{}"], ids=repr)
async def test_a_record_that_cannot_be_read_is_named_in_every_view(
    http: httpx.AsyncClient, worker: Any, row: Row, record: bytes
) -> None:
    answer = await http.post("/v1/batches", json={"rows": [row] * 3})
    batch_id = str(answer.json()["batch_id"])
    claims = await worker.claim(batch_id)
    commit = Commit(outcome="succeeded", record=record, trajectory=b"", usable=True, early_stop=0, sums={})
    await worker.store.run_many([Rollouts(worker.store).commit_call(claims[0], commit)])
    for claim in claims[1:]:
        await worker.end(claim)
    for view in ("light", "training", "full"):
        items = (await http.get(f"/v1/batches/{batch_id}/results", params={"view": view})).json()["items"]
        assert [item["error"] and item["error"]["kind"] for item in items] == [UNREADABLE, None, None]
        assert (items[0]["rollout_id"], items[0]["trajectory"]) == (f"{batch_id}:0:0", None)
        ResultAnswer.model_validate(items[0])
    answer = await http.post(f"/v1/batches/{batch_id}/requeue", json={"error_kinds": [UNREADABLE]})
    assert answer.json() == {"requeued": 1}


@pytest.mark.parametrize("fields", [{"m": "garbage"}, {"m": b"\xff:\xfe"}, {"x": "y"}, {"m": "1:0:2", "j": "{}"}])
async def test_entries_of_the_log_that_name_no_rollout_are_passed_over(
    http: httpx.AsyncClient, worker: Any, row: Row, fields: dict[str, Any]
) -> None:
    answer = await http.post("/v1/batches", json={"rows": [row] * 3})
    batch_id = str(answer.json()["batch_id"])
    log = worker.store.keys.batch(batch_id).log
    for claim in await worker.claim(batch_id):
        await worker.store.redis.xadd(log, fields)
        await worker.end(claim)
    seen: list[str] = []
    after, done = "0-0", False
    while not done:
        page = (await http.get(f"/v1/batches/{batch_id}/results", params={"limit": 1, "after": after})).json()
        seen += [item["rollout_id"] for item in page["items"]]
        assert page["next_after"] != after or page["done"]
        after, done = page["next_after"], page["done"]
    assert seen == [f"{batch_id}:{number}:0" for number in range(3)]
    for unit in ("rollout", "group"):
        body = {"consumer": unit, "unit": unit, "max": 10, "ttl_s": 60}
        answer = await http.post(f"/v1/batches/{batch_id}/lease", json=body)
        assert answer.status_code == 200, answer.text
        assert [item["rollout_id"] for item in answer.json()["items"]] == seen


async def test_the_client_reads_on_and_says_why_one_has_no_tokens(
    served: httpx.AsyncClient, worker: Any, row: Row, tmp_path: Path
) -> None:
    batch_id = await damaged_batch(served, worker, row, b"f5 b-x/gone.1 00000000", tmp_path)
    async with connect(str(served.base_url)) as farm:
        batch = farm.batch(batch_id)
        read = [result async for result in batch.results(view="training")]
        leased = [result async for result in batch.leased("trainer", view="training")]
        for results in (read, leased):
            assert [result.reward for result in results] == [1.0, 1.0, None, 1.0, 1.0]
            error = results[2].error
            assert error is not None
            assert error.kind == UNREADABLE
            with pytest.raises(NotFound, match="requeue it") as raised:
                _ = results[2].segments
            assert raised.value.code == UNREADABLE
            assert len(results[3].segments) == 1
        assert await batch.requeue(error_kinds=[UNREADABLE]) == {"requeued": 1}
