"""Leasing and acknowledging over HTTP, with a worker controlled by the test."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import msgpack
import pytest

from api.schemas.leases import LeaseAnswer

pytestmark = pytest.mark.anyio
Row = dict[str, Any]


async def submit(http: httpx.AsyncClient, rows: list[Row], **options: Any) -> str:
    answer = await http.post("/v1/batches", json={"rows": rows, **options})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["batch_id"])


async def lease(http: httpx.AsyncClient, batch_id: str, consumer: str = "trainer", **options: Any) -> dict[str, Any]:
    answer = await http.post(f"/v1/batches/{batch_id}/lease", json={"consumer": consumer, **options})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def ack(http: httpx.AsyncClient, batch_id: str, consumer: str = "trainer", **named: Any) -> int:
    answer = await http.post(f"/v1/batches/{batch_id}/ack", json={"consumer": consumer, **named})
    assert answer.status_code == 200, answer.text
    return int(answer.json()["acknowledged"])


def names(leased: dict[str, Any]) -> list[str]:
    return [item["rollout_id"] for item in leased["items"]]


@pytest.mark.both_carriers
async def test_what_is_acknowledged_does_not_come_again_and_the_end_is_said(
    http: httpx.AsyncClient, row: Row, worker: Any
) -> None:
    batch_id = await submit(http, [row] * 5)
    await worker.end_all(batch_id)
    first = await lease(http, batch_id, max=3)
    second = await lease(http, batch_id, max=3)
    assert names(first) + names(second) == [f"{batch_id}:{number}:0" for number in range(5)]
    assert (await lease(http, batch_id)) | {"lease_id": ""} == {
        "items": [], "lease_id": "", "expires_at": None, "done": False,
    }  # fmt: skip
    assert await ack(http, batch_id, lease_id=first["lease_id"]) == 3
    assert await ack(http, batch_id, lease_id=first["lease_id"]) == 0
    assert await ack(http, batch_id, rollout_ids=names(second)) == 2
    assert (await lease(http, batch_id))["done"] is True


async def test_what_a_dead_consumer_held_comes_back_when_its_lease_has_ended(
    http: httpx.AsyncClient, row: Row, worker: Any
) -> None:
    batch_id = await submit(http, [row] * 3)
    await worker.end_all(batch_id)
    lost = await lease(http, batch_id, ttl_s=0.05)
    answer = await http.post(
        f"/v1/batches/{batch_id}/lease", json={"consumer": "trainer", "ttl_s": 60}, params={"wait": 30}
    )
    assert names(answer.json()) == names(lost)
    assert names(await lease(http, batch_id)) == []


async def test_consumers_do_not_disturb_each_other(http: httpx.AsyncClient, row: Row, worker: Any) -> None:
    batch_id = await submit(http, [row] * 2)
    await worker.end_all(batch_id)
    mine = await lease(http, batch_id, "a")
    await ack(http, batch_id, "a", lease_id=mine["lease_id"])
    theirs = await lease(http, batch_id, "b")
    assert names(theirs) == names(mine)
    assert await ack(http, batch_id, "b", lease_id=mine["lease_id"]) == 0


@pytest.mark.both_carriers
async def test_groups_are_handed_out_whole_and_only_when_complete(
    http: httpx.AsyncClient, row: Row, worker: Any
) -> None:
    batch_id = await submit(http, [row] * 2, num_samples=2)
    claims = await worker.claim(batch_id)
    await worker.end(claims[1])
    assert names(await lease(http, batch_id, unit="group")) == []
    await worker.end(claims[0])
    await worker.end(claims[2])
    leased = await lease(http, batch_id, unit="group", max=10)
    assert names(leased) == [f"{batch_id}:0:0", f"{batch_id}:0:1"]
    refused = await http.post(
        f"/v1/batches/{batch_id}/ack", json={"consumer": "trainer", "rollout_ids": [f"{batch_id}:0:1"]}
    )
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "incomplete_group")
    assert await ack(http, batch_id, rollout_ids=names(leased)) == 2
    await worker.end(claims[3])
    assert names(await lease(http, batch_id, unit="group")) == [f"{batch_id}:1:0", f"{batch_id}:1:1"]


async def test_a_consumer_keeps_to_one_unit(http: httpx.AsyncClient, row: Row, worker: Any) -> None:
    batch_id = await submit(http, [row])
    await lease(http, batch_id, unit="group")
    answer = await http.post(f"/v1/batches/{batch_id}/lease", json={"consumer": "trainer"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "unit_conflict")


async def test_a_failed_rollout_that_ran_again_is_a_new_result(http: httpx.AsyncClient, row: Row, worker: Any) -> None:
    batch_id = await submit(http, [row])
    await worker.end_all(batch_id, kind="tool_error")
    old = await lease(http, batch_id)
    assert (await http.post(f"/v1/batches/{batch_id}/requeue")).json() == {"requeued": 1}
    await worker.end_all(batch_id)
    new = await lease(http, batch_id)
    assert [item["outcome"] for item in new["items"]] == ["succeeded"]
    assert await ack(http, batch_id, lease_id=old["lease_id"], rollout_ids=names(old)) == 0
    assert await ack(http, batch_id, lease_id=new["lease_id"], rollout_ids=names(new)) == 1


async def test_a_lease_that_is_asked_for_again_is_given_again(http: httpx.AsyncClient, row: Row, worker: Any) -> None:
    batch_id = await submit(http, [row] * 4)
    await worker.end_all(batch_id)
    first = await lease(http, batch_id, max=2, lease_id="mine", ttl_s=60)
    again = await lease(http, batch_id, max=2, lease_id="mine", ttl_s=600)
    assert names(again) == names(first)
    assert again["expires_at"] > first["expires_at"]
    assert await ack(http, batch_id, lease_id="mine") == 2


@pytest.mark.both_carriers
async def test_a_lease_waits_for_the_first_result(http: httpx.AsyncClient, row: Row, worker: Any) -> None:
    batch_id = await submit(http, [row] * 2)
    [first, _] = await worker.claim(batch_id)
    path = f"/v1/batches/{batch_id}/lease"
    waiting = asyncio.create_task(http.post(path, params={"wait": 30}, json={"consumer": "trainer"}))
    await worker.until_blocked()
    await worker.end(first)
    assert names((await waiting).json()) == [f"{batch_id}:0:0"]


async def test_a_lease_is_what_the_document_says(http: httpx.AsyncClient, row: Row) -> None:
    batch_id = await submit(http, [row])
    await http.delete(f"/v1/batches/{batch_id}")
    leased = await lease(http, batch_id)
    LeaseAnswer.model_validate(leased, extra="forbid")
    assert [item["outcome"] for item in leased["items"]] == ["cancelled"]


@pytest.mark.both_carriers
async def test_a_lease_of_more_than_one_portion_is_whole(http: httpx.AsyncClient, row: Row, worker: Any) -> None:
    batch_id = await submit(http, [row] * 100)
    await worker.end_all(batch_id)
    answer = await http.post(
        f"/v1/batches/{batch_id}/lease",
        params={"view": "training"},
        headers={"accept": "application/msgpack"},
        json={"consumer": "trainer", "max": 90},
    )
    assert answer.headers["content-type"] == "application/msgpack"
    found = msgpack.unpackb(answer.content)
    assert len({item["rollout_id"] for item in found["items"]}) == 90
    assert found["items"][0]["segments"][0]["token_ids"] == b"\x05\0\0\0\x06\0\0\0"
    assert await ack(http, batch_id, lease_id=found["lease_id"]) == 90


@pytest.mark.parametrize(
    ("call", "body", "field"),
    [
        ("lease", {}, "consumer"),
        ("lease", {"consumer": "a b"}, "consumer"),
        ("lease", {"consumer": "a", "max": 0}, "max"),
        ("lease", {"consumer": "a", "ttl_s": 0}, "ttl_s"),
        ("lease", {"consumer": "a", "unit": "batch"}, "unit"),
        ("lease", {"consumer": "a", "limit": 1}, "limit"),
        ("ack", {"consumer": "a"}, "lease_id"),
        ("ack", {"consumer": "a", "rollout_ids": ["elsewhere:0:0"]}, "rollout_ids.0"),
    ],
)
async def test_a_body_that_makes_no_sense_is_422_and_named(
    http: httpx.AsyncClient, call: str, body: dict[str, Any], field: str
) -> None:
    batch_id = await submit(http, [])
    answer = await http.post(f"/v1/batches/{batch_id}/{call}", json=body)
    assert answer.status_code == 422
    assert answer.json()["error"]["details"]["field"] == field


@pytest.mark.parametrize("call", ["lease", "ack"])
async def test_a_batch_of_nobody_is_404(http: httpx.AsyncClient, call: str) -> None:
    answer = await http.post(
        f"/v1/batches/nobody/{call}", json={"consumer": "a"} | ({"lease_id": "l"} if call == "ack" else {})
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "batch_not_found")
