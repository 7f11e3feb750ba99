"""Results, status, cancellation and requeueing, with a worker controlled by the test."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import msgpack
import pytest

from api.schemas.batches import BatchAnswer
from api.schemas.results import ResultAnswer, ResultPage, UnfinishedRollout

pytestmark = pytest.mark.anyio
Row = dict[str, Any]


async def submit(http: httpx.AsyncClient, rows: list[Row], **options: Any) -> str:
    answer = await http.post("/v1/batches", json={"rows": rows, **options})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["batch_id"])


@pytest.mark.both_carriers
async def test_pages_follow_each_other_to_the_end_without_gap_or_repeat(
    http: httpx.AsyncClient, row: Row, worker: Any
) -> None:
    batch_id = await submit(http, [row] * 7)
    await worker.end_all(batch_id)
    seen: list[str] = []
    after = None
    for _ in range(10):
        params = {"limit": 3, **({"after": after} if after else {})}
        page = (await http.get(f"/v1/batches/{batch_id}/results", params=params)).json()
        seen += [item["rollout_id"] for item in page["items"]]
        after = page["next_after"]
        if page["done"]:
            break
    assert seen == [f"{batch_id}:{number}:0" for number in range(7)]
    last = (await http.get(f"/v1/batches/{batch_id}/results", params={"after": after})).json()
    assert last == {"items": [], "next_after": after, "done": True}


async def test_a_batch_that_is_not_sealed_is_never_done(http: httpx.AsyncClient, row: Row, worker: Any) -> None:
    batch_id = await submit(http, [row], sealed=False)
    await worker.end_all(batch_id)
    assert (await http.get(f"/v1/batches/{batch_id}/results")).json()["done"] is False
    await http.post(f"/v1/batches/{batch_id}/seal")
    assert (await http.get(f"/v1/batches/{batch_id}/results")).json()["done"] is True


@pytest.mark.both_carriers
async def test_a_long_poll_returns_with_the_first_result(http: httpx.AsyncClient, row: Row, worker: Any) -> None:
    batch_id = await submit(http, [row] * 2)
    [first, _] = await worker.claim(batch_id)
    waiting = asyncio.create_task(http.get(f"/v1/batches/{batch_id}/results", params={"wait": 30}))
    await worker.until_blocked()
    await worker.end(first)
    page = (await asyncio.wait_for(waiting, 5)).json()
    assert [item["reward"] for item in page["items"]] == [1.0]
    assert page["done"] is False


@pytest.mark.both_carriers
async def test_a_long_poll_ends_when_the_batch_does(http: httpx.AsyncClient) -> None:
    batch_id = await submit(http, [], sealed=False)
    waiting = asyncio.create_task(http.get(f"/v1/batches/{batch_id}/results", params={"wait": 30}))
    await http.post(f"/v1/batches/{batch_id}/seal")
    assert (await asyncio.wait_for(waiting, 5)).json()["done"] is True


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=5001", "limit=x", "wait=-1", "wait=61", "wait=nan", "view=all", "after=x", "after=5-0%0a"],
)
async def test_a_query_that_makes_no_sense_is_422_and_named(http: httpx.AsyncClient, query: str) -> None:
    batch_id = await submit(http, [])
    for accept in ("application/json", "application/x-ndjson"):
        answer = await http.get(f"/v1/batches/{batch_id}/results?{query}", headers={"accept": accept})
        assert answer.status_code == 422
        assert answer.json()["error"]["details"]["field"] == query.partition("=")[0]


@pytest.mark.both_carriers
async def test_views_add_the_trajectory(http: httpx.AsyncClient, row: Row, worker: Any) -> None:
    batch_id = await submit(http, [row])
    await worker.end_all(batch_id)
    found = {}
    for view in ("light", "full", "training"):
        page = (await http.get(f"/v1/batches/{batch_id}/results", params={"view": view})).json()
        [found[view]] = page["items"]
    assert not {"segments", "response", "responses_create_params"} & found["light"].keys()
    assert found["training"]["segments"] == [
        {"token_ids": [5, 6], "loss_mask": [0, 1], "logprobs": [0.0, -0.5], "policy_versions": [[0, 2, 3]]}
    ]
    assert "response" not in found["training"]
    assert found["full"]["response"] == {"id": "resp"}
    assert found["full"]["responses_create_params"] == row["responses_create_params"]
    one = (await http.get(f"/v1/rollouts/{batch_id}:0:0")).json()
    assert (one["state"], one["response"]) == ("succeeded", {"id": "resp"})


@pytest.mark.both_carriers
async def test_msgpack_carries_packed_arrays(http: httpx.AsyncClient, row: Row, worker: Any) -> None:
    batch_id = await submit(http, [row] * 40)
    await worker.end_all(batch_id)
    answer = await http.get(
        f"/v1/batches/{batch_id}/results", params={"view": "training"}, headers={"accept": "application/msgpack"}
    )
    assert answer.headers["content-type"] == "application/msgpack"
    page = msgpack.unpackb(answer.content)
    assert len(page["items"]) == 40
    assert page["done"] is True
    assert page["items"][0]["segments"][0]["token_ids"] == b"\x05\0\0\0\x06\0\0\0"


async def test_made_records_are_what_the_document_says(http: httpx.AsyncClient, row: Row) -> None:
    batch_id = await submit(http, [row])
    await http.delete(f"/v1/batches/{batch_id}")
    page = (await http.get(f"/v1/batches/{batch_id}/results", params={"view": "full"})).json()
    ResultPage.model_validate(page, extra="forbid")
    one = (await http.get(f"/v1/rollouts/{batch_id}:0:0")).json()
    ResultAnswer.model_validate(one, extra="forbid")
    assert page["items"][0]["outcome"] == "cancelled"
    assert page["items"][0]["reward"] is None


async def test_the_status_has_means_for_each_environment(http: httpx.AsyncClient, row: Row, worker: Any) -> None:
    batch_id = await submit(http, [row] * 4)
    claims = await worker.claim(batch_id)
    for claim, how in zip(claims, [{"reward": 1.0}, {"reward": 0.0}, {"kind": "tool_error"}, {}], strict=True):
        if how:
            await worker.end(claim, **how)
    status = (await http.get(f"/v1/batches/{batch_id}")).json()
    BatchAnswer.model_validate(status, extra="forbid")
    assert status["state"] == "running"
    assert (status["ledger"]["succeeded"], status["ledger"]["failed"], status["ledger"]["running"]) == (2, 1, 1)
    weather = status["environments"]["weather"]
    assert (weather["rollouts"], weather["reward_mean"], weather["pass_rate"]) == (3, 0.5, 0.5)
    assert (weather["turns_mean"], weather["input_tokens_mean"]) == (2.0, 0.0)


async def test_batches_are_listed_newest_first_by_run_state_and_page(http: httpx.AsyncClient, row: Row) -> None:
    ids = [await submit(http, [row], run="a", batch_id=f"b{number}") for number in range(3)]
    await submit(http, [], run="b", batch_id="other")
    page = (await http.get("/v1/batches", params={"run": "a", "limit": 2})).json()
    rest = (await http.get("/v1/batches", params={"run": "a", "limit": 2, "after": page["next_after"]})).json()
    assert sorted(item["batch_id"] for item in page["items"] + rest["items"]) == ids
    assert rest["next_after"] is None
    done = (await http.get("/v1/batches", params={"state": "done"})).json()["items"]
    assert [item["batch_id"] for item in done] == ["other"]
    assert (await http.get("/v1/batches", params={"state": "odd"})).status_code == 422
    assert (await http.get("/v1/batches", params={"after": "nobody"})).status_code == 422


@pytest.mark.both_carriers
async def test_cancelling_is_repeatable_and_keeps_what_had_finished(
    http: httpx.AsyncClient, row: Row, worker: Any
) -> None:
    batch_id = await submit(http, [row] * 3, num_samples=2)
    [first, *_] = await worker.claim(batch_id, 2)
    await worker.end(first)
    assert (await http.delete(f"/v1/rollouts/{batch_id}:0:1")).json() == {
        "rollout_id": f"{batch_id}:0:1",
        "cancelled": 1,
        "left": 0,
        "tombstone": False,
    }
    assert (await http.delete(f"/v1/groups/{batch_id}:1")).json()["cancelled"] == 2
    answer = (await http.delete(f"/v1/batches/{batch_id}")).json()
    assert (answer["cancelled"], answer["tombstone"], answer["state"]) == (2, False, "cancelled")
    assert answer["ledger"]["succeeded"] == 1
    assert (await http.delete(f"/v1/batches/{batch_id}")).json()["cancelled"] == 0
    page = (await http.get(f"/v1/batches/{batch_id}/results")).json()
    assert page["done"] is True
    assert sorted(item["outcome"] for item in page["items"]) == ["cancelled"] * 5 + ["succeeded"]
    assert 'farm_rollouts_total{outcome="cancelled"} 5.0' in (await http.get("/metrics")).text


async def test_a_large_batch_is_being_cancelled_when_the_answer_comes_whoever_asks_and_how_often(
    http: httpx.AsyncClient, row: Row
) -> None:
    batch_id = await submit(http, [row] * 3, num_samples=1000)
    answers = await asyncio.gather(*(http.delete(f"/v1/batches/{batch_id}") for _ in range(4)))
    assert [answer.status_code for answer in answers] == [202] * 4
    bodies = [answer.json() for answer in answers]
    ended = sum(body["cancelled"] for body in bodies)
    assert 0 < ended < 1000
    assert {body["left"] for body in bodies} == {3000 - ended}
    assert {body["state"] for body in bodies} == {"cancelled"}
    group = await submit(http, [row], num_samples=1000)
    answer = await http.delete(f"/v1/groups/{group}:0")
    assert (answer.status_code, answer.json()["left"]) == (202, 1000)


async def test_a_cancel_that_comes_before_its_submission_wins(http: httpx.AsyncClient, row: Row) -> None:
    for path in ("/v1/batches/early", "/v1/groups/late:0", "/v1/rollouts/late:1:0"):
        assert (await http.delete(path)).json()["tombstone"] is True
    await submit(http, [row], batch_id="early")
    assert (await http.get("/v1/batches/early")).json()["state"] == "cancelled"
    await submit(http, [row] * 3, batch_id="late")
    ledger = (await http.get("/v1/batches/late")).json()["ledger"]
    assert (ledger["queued"], ledger["cancelled"]) == (1, 2)


@pytest.mark.both_carriers
@pytest.mark.parametrize(
    "path",
    [
        "/v1/batches/a b",
        "/v1/groups/nocolon",
        "/v1/groups/b:x",
        "/v1/rollouts/b:0",
        "/v1/rollouts/b:0:-1",
        "/v1/rollouts/%00:0:0",
    ],
)
async def test_an_id_of_the_wrong_form_is_404(http: httpx.AsyncClient, path: str) -> None:
    answer = await http.delete(path)
    assert answer.status_code == 404
    assert answer.json()["error"]["code"].endswith("_not_found")


@pytest.mark.both_carriers
async def test_failed_rollouts_run_again_as_a_new_attempt(http: httpx.AsyncClient, row: Row, worker: Any) -> None:
    batch_id = await submit(http, [row] * 3)
    claims = await worker.claim(batch_id)
    for claim, kind in zip(claims, ["tool_error", "timeout", None], strict=True):
        await worker.end(claim, kind=kind)
    path = f"/v1/batches/{batch_id}/requeue"
    assert (await http.post(path, json={"error_kinds": ["judge_error"]})).json() == {"requeued": 0}
    assert (await http.post(path, json={"error_kinds": ["timeout"]})).json() == {"requeued": 1}
    assert (await http.post(path, json={"rollout_ids": [f"{batch_id}:0:0"]})).json() == {"requeued": 1}
    assert (await http.post(path)).json() == {"requeued": 0}
    status = (await http.get(f"/v1/batches/{batch_id}")).json()
    assert (status["state"], status["ledger"]["queued"], status["ledger"]["failed"]) == ("running", 2, 0)
    again = await worker.claim(batch_id)
    assert [claim.attempt for claim in again] == [2, 2]
    for claim in again:
        await worker.end(claim, kind="tool_error")
    one = (await http.get(f"/v1/rollouts/{again[0].batch_id}:{again[0].member}")).json()
    assert [attempt["attempt"] for attempt in one["error"]["attempts"]] == [1, 2]


@pytest.mark.parametrize(
    "body", [{"error_kinds": ["odd"]}, {"bogus": 1}, {"rollout_ids": ["other:0:0"]}, {"rollout_ids": "x"}]
)
async def test_a_requeue_that_makes_no_sense_is_422(http: httpx.AsyncClient, body: Row) -> None:
    batch_id = await submit(http, [])
    assert (await http.post(f"/v1/batches/{batch_id}/requeue", json=body)).status_code == 422
    assert (await http.post("/v1/batches/nobody/requeue")).status_code == 404


async def test_an_unfinished_rollout_shows_where_it_is(http: httpx.AsyncClient, row: Row, worker: Any) -> None:
    batch_id = await submit(http, [row] * 2)
    await worker.claim(batch_id, 1)
    running = (await http.get(f"/v1/rollouts/{batch_id}:0:0")).json()
    queued = (await http.get(f"/v1/rollouts/{batch_id}:1:0")).json()
    assert (running["state"], running["worker"], running["outcome"]) == ("running", "w1", None)
    assert queued["state"] == "queued"
    for one in (running, queued):
        UnfinishedRollout.model_validate(one, extra="forbid")
    assert (await http.get(f"/v1/rollouts/{batch_id}:9:0")).status_code == 404
