"""The event stream through a real server, with a worker controlled by the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import orjson
import pytest

pytestmark = pytest.mark.anyio
Row = dict[str, Any]
Event = tuple[str, str | None, dict[str, Any]]  # kind, id, data


async def events_of(answer: httpx.Response) -> AsyncIterator[Event]:
    fields: dict[str, str] = {}
    async for line in answer.aiter_lines():
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif "event" in fields:
            yield fields["event"], fields.get("id"), orjson.loads(fields["data"])
            fields = {}
        else:
            fields = {}


async def all_events(served: httpx.AsyncClient, batch_id: str, last: str | None = None) -> list[Event]:
    headers = {"last-event-id": last} if last else {}
    async with served.stream("GET", f"/v1/batches/{batch_id}/events", headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        return [event async for event in events_of(answer)]


async def submit(http: httpx.AsyncClient, rows: list[Row], **options: Any) -> str:
    return str((await http.post("/v1/batches", json={"rows": rows, **options})).json()["batch_id"])


async def test_a_stream_tells_what_happens_and_ends_with_the_batch(
    served: httpx.AsyncClient, row: Row, worker: Any
) -> None:
    batch_id = await submit(served, [row], num_samples=2, sealed=False)
    seen: list[Event] = []
    async with served.stream("GET", f"/v1/batches/{batch_id}/events") as answer:
        async for event in events_of(answer):
            seen.append(event)
            if len(seen) == 1:
                [good, bad] = await worker.claim(batch_id)
                await worker.end(good)
                await worker.end(bad, kind="tool_error")
            if event[0] == "group":
                await served.post(f"/v1/batches/{batch_id}/seal")
    assert (seen[0][0], seen[0][2]["state"]) == ("batch", "open")
    assert [data["rollout_id"] for kind, _, data in seen if kind == "rollout"] == [f"{batch_id}:0:0", f"{batch_id}:0:1"]
    [group] = [data for kind, _, data in seen if kind == "group"]
    assert group["group_id"] == f"{batch_id}:0"
    assert group["outcomes"] == {"succeeded": 1, "failed": 1, "cancelled": 0, "expired": 0}
    [*_, ledger] = [data for kind, _, data in seen if kind == "ledger"]
    assert (ledger["succeeded"], ledger["failed"], ledger["queued"]) == (1, 1, 0)
    assert (seen[-1][0], seen[-1][2]["state"]) == ("batch", "done")
    assert seen[-1][2]["ended_at"]
    assert [data["ended_at"] for kind, _, data in seen[:-1] if kind == "batch"].count(None) == len(
        [1 for kind, _, _ in seen[:-1] if kind == "batch"]
    )


async def test_whoever_comes_back_with_any_id_misses_nothing(served: httpx.AsyncClient, row: Row, worker: Any) -> None:
    batch_id = await submit(served, [row] * 3, num_samples=2)
    await worker.end_all(batch_id)
    whole = await all_events(served, batch_id)
    told = [(kind, data) for kind, _, data in whole if kind in ("rollout", "group")]
    assert [kind for kind, _ in told].count("group") == 3
    last = None
    for cut, (_kind, event_id, _data) in enumerate(whole):
        last = event_id or last
        before = [(kind, data) for kind, _, data in whole[: cut + 1] if kind in ("rollout", "group")]
        rest = [(kind, data) for kind, _, data in await all_events(served, batch_id, last) if (kind, data) in told]
        assert all(one in before or one in rest for one in told)
        assert len(before) + len(rest) <= len(told) + 1  # at most the rollout that completed a group again


async def test_an_id_that_is_no_cursor_is_422(served: httpx.AsyncClient, row: Row) -> None:
    batch_id = await submit(served, [row])
    answer = await served.get(f"/v1/batches/{batch_id}/events", headers={"last-event-id": "x"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_cursor")
    assert (await served.get("/v1/batches/nobody/events")).status_code == 404


async def test_a_listener_that_goes_away_frees_its_connection_to_redis(
    served: httpx.AsyncClient, row: Row, worker: Any
) -> None:
    batch_id = await submit(served, [row])
    async with served.stream("GET", f"/v1/batches/{batch_id}/events"):
        await worker.until_blocked()
    async with asyncio.timeout(20):
        while int((await worker.store.redis.info("clients"))["blocked_clients"]):
            pass
