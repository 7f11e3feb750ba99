"""Submission of batches, and the errors of refused ones."""

from __future__ import annotations

import gzip
from typing import Any

import httpx
import orjson
import pytest

from api.ingest import staging
from gym.errors import Unavailable
from gym.state.ledger.submission import StagedRow
from gym.task import RowHeader

pytestmark = pytest.mark.anyio
NDJSON = {"content-type": "application/x-ndjson"}
Row = dict[str, Any]


def lines(*rows: object) -> bytes:
    return b"\n".join(map(orjson.dumps, rows))


async def open_batch(http: httpx.AsyncClient, **options: Any) -> str:
    answer = await http.post("/v1/batches", json={"sealed": False, **options})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["batch_id"])


async def ledger(http: httpx.AsyncClient, batch_id: str) -> dict[str, int]:
    found: dict[str, int] = (await http.get(f"/v1/batches/{batch_id}")).json()["ledger"]
    assert found["submitted"] == sum(found.values()) - found["submitted"]
    return found


@pytest.mark.both_carriers
async def test_a_batch_is_created_and_says_where_to_go_on(http: httpx.AsyncClient, row: Row) -> None:
    answer = await http.post("/v1/batches", json={"run": "grpo-a", "num_samples": 4, "rows": [row, row]})
    assert answer.status_code == 201
    created = answer.json()
    path = f"/v1/batches/{created['batch_id']}"
    assert created == {
        "batch_id": created["batch_id"],
        "run": "grpo-a",
        "state": "running",
        "submitted": 8,
        "links": {"self": path, "results": f"{path}/results", "rows": f"{path}/rows", "seal": f"{path}/seal"},
    }
    status = (await http.get(path)).json()
    assert status["ledger"]["queued"] == 8
    assert status["options"]["policy"] == "policy"
    assert status["created_at"].endswith("Z")


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"input": "hi", "n": 4}, "responses_create_params.n"),
        ({"input": "hi", "tools": [{"type": "web_search"}]}, "responses_create_params.tools.0.type"),
        ({"input": "hi", "previous_response_id": "r"}, "responses_create_params.previous_response_id"),
        ({"input": [{"type": "mcp_call"}]}, "responses_create_params.input.0.type"),
        ({"input": []}, "responses_create_params.input"),
    ],
)
async def test_a_row_whose_request_can_never_be_sent_is_refused(
    http: httpx.AsyncClient, row: Row, params: Row, field: str
) -> None:
    bad = {**row, "responses_create_params": params}
    whole = await http.post("/v1/batches", json={"rows": [row, bad]})
    assert whole.status_code == 422, whole.text
    assert (whole.json()["error"]["details"]["row"], whole.json()["error"]["details"]["field"]) == (1, field)
    batch_id = await open_batch(http)
    streamed = await http.post(f"/v1/batches/{batch_id}/rows", content=lines(row, bad), headers=NDJSON)
    assert streamed.status_code == 422, streamed.text
    assert (streamed.json()["error"]["details"]["line"], streamed.json()["error"]["details"]["field"]) == (2, field)


async def test_rows_for_a_server_that_has_the_responses_api_are_checked_for_that(
    http: httpx.AsyncClient, row: Row
) -> None:
    custom = {"type": "custom", "name": "patch"}
    params = {"input": "hi", "tools": [custom]}
    inline = {"base_urls": ["http://127.0.0.1:9/v1"], "model": "m", "api": "responses"}
    taken = await http.post(
        "/v1/batches", json={"policy": inline, "rows": [{**row, "responses_create_params": params}]}
    )
    assert taken.status_code == 201, taken.text


@pytest.mark.both_carriers
async def test_the_same_body_again_is_a_no_op_and_another_is_a_conflict(http: httpx.AsyncClient, row: Row) -> None:
    body = {"batch_id": "b", "rows": [row], "metadata": {"a": 1, "b": 2}}
    first = await http.post("/v1/batches", json=body)
    turned = orjson.dumps(dict(reversed(body.items())))
    again = await http.post("/v1/batches", content=turned, headers={"content-type": "application/json"})
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    other = await http.post("/v1/batches", json={**body, "priority": 9})
    assert other.status_code == 409
    assert other.json()["error"]["code"] == "batch_conflict"
    assert (await ledger(http, "b"))["submitted"] == 1


async def test_a_repeat_is_answered_although_its_policy_has_gone(http: httpx.AsyncClient, row: Row) -> None:
    body = {"batch_id": "b", "rows": [row]}
    await http.post("/v1/batches", json=body)
    assert (await http.delete("/v1/policies/policy")).status_code == 200
    assert (await http.post("/v1/batches", json=body)).status_code == 200
    assert (await http.post("/v1/batches", json={**body, "batch_id": "c"})).status_code == 422


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"bogus": 1}, "invalid_batch", "bogus"),
        ({"num_samples": 0}, "invalid_batch", "num_samples"),
        ({"batch_id": "a b"}, "invalid_batch", "batch_id"),
        ({"limits": {"max_turns": -1}}, "invalid_batch", "limits.max_turns"),
        ({"staleness": {"max_lag": 4, "action": "drop"}}, "not_built", "staleness"),
        ({"rows": {}}, "invalid_batch", "rows"),
        ({"policy": "nobody"}, "unknown_policy", "policy"),
        ({"environment": "wether"}, "unknown_environment", "environment"),
        ({"agent": "looper"}, "unknown_agent", "agent"),
        (
            {"policy": {"base_urls": ["http://169.254.169.254/"], "model": "m"}},
            "host_not_allowed",
            "policy.base_urls",
        ),
    ],
)
async def test_an_option_that_is_wrong_is_422_and_named(
    http: httpx.AsyncClient, changes: dict[str, Any], code: str, field: str
) -> None:
    answer = await http.post("/v1/batches", json=changes)
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert error["code"] == code
    assert error["details"]["field"].startswith(field)
    assert field.partition(".")[0] in error["message"]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"environment": "wether"}, "environment"),
        ({"task_id": "no spaces"}, "task_id"),
        ({"responses_create_params": None}, "responses_create_params"),
        ({"num_samples": True}, "num_samples"),
        ({"agent": "looper"}, "agent"),
    ],
)
async def test_a_bad_row_refuses_the_batch_and_is_named(
    http: httpx.AsyncClient, row: Row, changes: Row, field: str
) -> None:
    answer = await http.post("/v1/batches", json={"batch_id": "b", "rows": [row, row, {**row, **changes}]})
    assert answer.status_code == 422
    assert answer.json()["error"]["details"]["row"] == 2
    assert answer.json()["error"]["details"]["field"] == field
    assert (await http.get("/v1/batches/b")).status_code == 404


@pytest.mark.both_carriers
async def test_bodies_and_rows_over_their_limits_are_413(http: httpx.AsyncClient, row: Row) -> None:
    answer = await http.post("/v1/batches", json={"rows": [row, {**row, "blob": "x" * 5000}]})
    assert answer.status_code == 413
    assert answer.json()["error"]["details"]["row"] == 1
    answer = await http.post("/v1/batches", json={"metadata": {"blob": "x" * 100_000}})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
    batch_id = await open_batch(http)
    answer = await http.post(f"/v1/batches/{batch_id}/rows", content=lines(row) + b"\n" + b"x" * 5000, headers=NDJSON)
    assert answer.status_code == 413
    assert answer.json()["error"]["details"]["line"] == 2
    assert (await ledger(http, batch_id))["submitted"] == 0


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'{"weight": NaN}', b"[" * 3000])
async def test_a_body_that_is_not_json_is_400_with_its_position(http: httpx.AsyncClient, body: bytes) -> None:
    answer = await http.post("/v1/batches", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "malformed_json"
    assert "position" in answer.json()["error"]["details"]


@pytest.mark.parametrize("levels", [230, 245, 250, 252, 253, 254, 500])
async def test_a_body_nested_too_deep_is_422_and_what_is_taken_can_be_shown(
    http: httpx.AsyncClient, levels: int
) -> None:
    deep = b'{"deep": ' + b"[" * levels + b"]" * levels + b"}"
    policy = b'{"base_urls": ["http://127.0.0.1"], "model": "m", "sampling_overrides": ' + deep + b"}"
    header = {"content-type": "application/json"}
    answers = [
        await http.post("/v1/batches", content=b'{"batch_id": "b", "metadata": ' + deep + b"}", headers=header),
        await http.post("/v1/batches", content=b'{"batch_id": "c", "policy": ' + policy + b"}", headers=header),
        await http.put("/v1/policies/p", content=policy, headers=header),
    ]
    if levels in (230, 500):
        assert {answer.status_code for answer in answers} == ({201, 200} if levels == 230 else {422})
    for path in ("/v1/batches", "/v1/policies", "/v1/batches/b", "/v1/batches/c"):
        assert (await http.get(path)).status_code in (200, 404)


async def test_another_content_type_is_415(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/batches", content=b"{}", headers={"content-type": "text/plain"})
    assert answer.status_code == 415


@pytest.mark.both_carriers
async def test_rows_are_appended_until_the_batch_is_sealed(http: httpx.AsyncClient, row: Row) -> None:
    batch_id = await open_batch(http, num_samples=2)
    sent = [{**row, "task_id": f"t{number}"} for number in range(2500)]
    answer = await http.post(f"/v1/batches/{batch_id}/rows", content=lines(*sent, sent[0]), headers=NDJSON)
    assert answer.json() == {"accepted": 2500, "repeated": 1, "submitted": 5000}
    sealed = await http.post(f"/v1/batches/{batch_id}/seal")
    assert (sealed.status_code, sealed.json()["state"]) == (200, "running")
    assert (await http.post(f"/v1/batches/{batch_id}/seal")).status_code == 200
    again = await http.post(f"/v1/batches/{batch_id}/rows", content=lines(*sent[:9]), headers=NDJSON)
    assert again.json() == {"accepted": 0, "repeated": 9, "submitted": 5000}
    assert (await http.post(f"/v1/batches/{batch_id}/rows", content=lines(row), headers=NDJSON)).status_code == 409


async def test_a_task_that_comes_again_with_another_body_is_a_conflict_and_nothing_is_added(
    http: httpx.AsyncClient, row: Row
) -> None:
    batch_id = await open_batch(http)
    first = {**row, "task_id": "t"}
    assert (await http.post(f"/v1/batches/{batch_id}/rows", content=lines(first), headers=NDJSON)).status_code == 200
    for rows in ([row, {**first, "other": 1}], [{**row, "task_id": "u"}, {**row, "task_id": "u", "other": 1}]):
        answer = await http.post(f"/v1/batches/{batch_id}/rows", content=lines(*rows), headers=NDJSON)
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "task_conflict")
    assert (await ledger(http, batch_id))["submitted"] == 1


@pytest.mark.both_carriers
async def test_a_bad_line_refuses_the_whole_stream_and_is_named(http: httpx.AsyncClient, row: Row, worker: Any) -> None:
    batch_id = await open_batch(http)
    good = lines(*[row] * 2000)
    cases = [
        (b"{nope", 400, {"line": 2002, "row": 2000}),
        (b"[]", 422, {"line": 2002, "row": 2000}),
        (lines({**row, "environment": "wether"}), 422, {"line": 2002, "field": "environment"}),
    ]
    for bad, status, details in cases:
        answer = await http.post(f"/v1/batches/{batch_id}/rows", content=good + b"\n\n" + bad, headers=NDJSON)
        assert answer.status_code == status
        error = answer.json()["error"]
        assert error["details"] | details == error["details"]
        assert "line 2002" in error["message"]
    assert (await ledger(http, batch_id))["submitted"] == 0
    keys = worker.store.keys.batch(batch_id)
    assert await worker.store.redis.exists(keys.rows, keys.staging, keys.backlog) == 0


@pytest.mark.both_carriers
async def test_rows_may_be_gzip(http: httpx.AsyncClient, row: Row) -> None:
    batch_id = await open_batch(http)
    packed = gzip.compress(lines(*[row] * 300))
    answer = await http.post(
        f"/v1/batches/{batch_id}/rows", content=packed, headers={**NDJSON, "content-encoding": "gzip"}
    )
    assert answer.json()["accepted"] == 300


@pytest.mark.both_carriers
async def test_a_full_backlog_is_429_with_retry_after(http: httpx.AsyncClient, row: Row) -> None:
    batch_id = await open_batch(http)
    rows = lines(*[{**row, "num_samples": 2001}] * 3)
    for answer in (
        await http.post(f"/v1/batches/{batch_id}/rows", content=rows, headers=NDJSON),
        await http.post("/v1/batches", json={"num_samples": 4000, "rows": [row] * 2}),
    ):
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "backlog_full")
        assert int(answer.headers["retry-after"]) > 0
    assert (await ledger(http, batch_id))["submitted"] == 0


@pytest.mark.parametrize("batch_id", ["nobody", "a b", "x" * 129])
async def test_rows_for_a_batch_that_there_is_not_are_404(http: httpx.AsyncClient, row: Row, batch_id: str) -> None:
    answer = await http.post(f"/v1/batches/{batch_id}/rows", content=lines(row), headers=NDJSON)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "batch_not_found")
    assert (await http.post(f"/v1/batches/{batch_id}/seal")).status_code == 404


async def test_rows_that_got_lost_in_redis_are_not_published_by_half(
    http: httpx.AsyncClient, row: Row, worker: Any
) -> None:
    batch_id = await open_batch(http)
    store = worker.store
    header = RowHeader(task_id=None, environment="weather", num_samples=1)
    async with staging(store, batch_id) as staged:
        await staged.add([StagedRow(header=header, raw=orjson.dumps(row), digest="")] * 3)
    [request_id] = await store.redis.hkeys(store.keys.batch(batch_id).staging)
    [key] = [name async for name in store.redis.scan_iter("*:stage:*") if name.endswith(request_id)]
    await store.redis.rpop(key)
    await store.redis.rpop(key + b":tasks")
    with pytest.raises(Unavailable, match="nothing was added"):
        await staged.publish(create=None, seal=False)
    assert (await ledger(http, batch_id))["submitted"] == 0


@pytest.mark.parametrize("rows", [0, 3])
async def test_a_full_redis_refuses_a_submission_with_429(
    http: httpx.AsyncClient, row: Row, worker: Any, rows: int
) -> None:
    redis = worker.store.redis
    await redis.config_set("maxmemory", "1")
    try:
        answer = await http.post("/v1/batches", json={"batch_id": "b", "rows": [row] * rows})
    finally:
        await redis.config_set("maxmemory", "0")
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "redis_full")
    assert int(answer.headers["retry-after"]) > 0
    assert (await http.get("/v1/batches/b")).status_code == 404
