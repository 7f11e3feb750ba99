"""Streamed responses through a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import orjson
import pytest

pytestmark = pytest.mark.anyio
NDJSON = {"content-type": "application/x-ndjson"}
STREAM = {"accept": "application/x-ndjson"}
Row = dict[str, Any]


async def open_batch(http: httpx.AsyncClient, **options: Any) -> str:
    return str((await http.post("/v1/batches", json={"sealed": False, **options})).json()["batch_id"])


async def test_a_stream_of_results_ends_with_the_batch(served: httpx.AsyncClient, row: Row, worker: Any) -> None:
    batch_id = await open_batch(served)
    body = b"\n".join([orjson.dumps(row)] * 3)
    await served.post(f"/v1/batches/{batch_id}/rows", content=body, headers=NDJSON)
    seen: list[str] = []
    async with served.stream("GET", f"/v1/batches/{batch_id}/results", headers=STREAM) as answer:
        assert answer.headers["content-type"] == "application/x-ndjson"
        assert await worker.end_all(batch_id) == 3
        async for line in answer.aiter_lines():
            if line:
                seen.append(orjson.loads(line)["rollout_id"])
            if len(seen) == 3:
                await served.post(f"/v1/batches/{batch_id}/seal")
    assert seen == [f"{batch_id}:{number}:0" for number in range(3)]


async def test_a_stream_begins_after_a_cursor(served: httpx.AsyncClient, row: Row, worker: Any) -> None:
    batch_id = (await served.post("/v1/batches", json={"rows": [row] * 3})).json()["batch_id"]
    await worker.end_all(batch_id)
    path = f"/v1/batches/{batch_id}/results"
    after = (await served.get(path, params={"limit": 2})).json()["next_after"]
    answer = await served.get(path, params={"after": after, "view": "training"}, headers=STREAM)
    [record] = map(orjson.loads, answer.text.splitlines())
    assert record["rollout_id"] == f"{batch_id}:2:0"
    assert record["segments"]


async def test_a_stream_of_nobody_is_404_in_the_shape_of_errors(served: httpx.AsyncClient) -> None:
    answer = await served.get("/v1/batches/nobody/results", headers=STREAM)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "batch_not_found")


async def test_a_reader_that_goes_away_frees_its_connection_to_redis(served: httpx.AsyncClient, worker: Any) -> None:
    batch_id = await open_batch(served)
    async with served.stream("GET", f"/v1/batches/{batch_id}/results", headers=STREAM):
        await worker.until_blocked()
    async with asyncio.timeout(20):
        while int((await worker.store.redis.info("clients"))["blocked_clients"]):
            pass


async def test_a_bad_line_far_into_a_stream_is_answered_and_nothing_is_enqueued(
    served: httpx.AsyncClient, row: Row, worker: Any
) -> None:
    batch_id = await open_batch(served)
    good = orjson.dumps(row) + b"\n"

    async def body() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield good * 100
        yield b"{nope\n"
        for _ in range(400):
            yield good * 500

    answer = await served.post(f"/v1/batches/{batch_id}/rows", content=body(), headers=NDJSON)
    assert answer.status_code == 400
    assert answer.json()["error"]["details"]["line"] == 4001
    assert (await served.get(f"/v1/batches/{batch_id}")).json()["ledger"]["submitted"] == 0
    assert await worker.store.redis.exists(worker.store.keys.batch(batch_id).rows) == 0


async def test_a_huge_row_is_refused_while_it_is_still_coming(served: httpx.AsyncClient) -> None:
    batch_id = await open_batch(served)

    async def body() -> AsyncIterator[bytes]:
        for _ in range(800):
            yield b"x" * 65536

    answer = await served.post(f"/v1/batches/{batch_id}/rows", content=body(), headers=NDJSON)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "row_too_large")
    answer = await served.post("/v1/batches", content=body(), headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


async def test_a_sender_that_goes_away_leaves_nothing(served: httpx.AsyncClient, row: Row, worker: Any) -> None:
    batch_id = await open_batch(served)
    keys = worker.store.keys.batch(batch_id)

    async def body() -> AsyncIterator[bytes]:
        yield (orjson.dumps(row) + b"\n") * 1500
        async with asyncio.timeout(20):
            while not await worker.store.redis.exists(keys.rows):
                pass
        raise RuntimeError("the sender dies")

    with pytest.raises(RuntimeError, match="the sender dies"):
        await served.post(f"/v1/batches/{batch_id}/rows", content=body(), headers=NDJSON)
    async with asyncio.timeout(20):
        while await worker.store.redis.exists(keys.rows, keys.staging):
            pass
    assert (await served.get(f"/v1/batches/{batch_id}")).json()["ledger"]["submitted"] == 0
