"""A Redis that lost its last writes under readers of a batch: every repeated result is announced."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import httpx
import orjson
import pytest

from gym.client import AsyncBatch, AsyncFarm, connect
from gym.errors import Conflict

pytestmark = pytest.mark.anyio
Row = dict[str, Any]
PutBack = Callable[[], Awaitable[None]]


@pytest.fixture
def url(carrier: str, served: httpx.AsyncClient, redis_url: str, new_client: Any) -> str:
    """Where a client connects to."""
    return str(served.base_url) if carrier == "http" else str(new_client(redis_url))


@pytest.fixture
async def farm(url: str) -> AsyncIterator[AsyncFarm]:
    async with connect(url) as farm:
        yield farm


async def copy(worker: Any, batch_id: str) -> PutBack:
    """Copy a batch in Redis; return a function that restores the copy."""
    redis = worker.store.redis
    names = [name async for name in redis.scan_iter(match=f"farm:b:{{{batch_id}}}:*")]
    kept = {name: await redis.dump(name) for name in names}

    async def put_back() -> None:
        later = [name async for name in redis.scan_iter(match=f"farm:b:{{{batch_id}}}:*")]
        async with redis.pipeline(transaction=True) as pipeline:  # no reader finds the batch missing
            pipeline.delete(*later)
            for name, value in kept.items():
                pipeline.restore(name, 0, value)
            await pipeline.execute()

    return put_back


async def end(worker: Any, batch_id: str, number: int) -> None:
    for claim in await worker.claim(batch_id, number):
        await worker.end(claim)


async def begin(farm: AsyncFarm, worker: Any, row: Row, *, ended: int) -> AsyncBatch:
    batch = await farm.submit([row] * 12)
    await end(worker, batch.batch_id, ended)
    return batch


@pytest.mark.both_carriers
@pytest.mark.parametrize("again", [0, 1, 3, 8], ids=lambda again: f"{again} ended since")
async def test_results_that_were_lost_are_made_anew_and_each_is_given_once(
    farm: AsyncFarm, worker: Any, row: Row, again: int, caplog: pytest.LogCaptureFixture
) -> None:
    batch = await begin(farm, worker, row, ended=4)
    put_back = await copy(worker, batch.batch_id)
    await end(worker, batch.batch_id, 3)
    results = batch.results()
    seen = [result.rollout_id for result in await results.page()]
    assert len(seen) == 7
    await put_back()
    await end(worker, batch.batch_id, again)
    seen += [result.rollout_id for result in await results.page(wait_s=0)]
    await end(worker, batch.batch_id, 12)
    while not results.done:
        seen += [result.rollout_id for result in await results.page(wait_s=1)]
    assert sorted(seen) == sorted(f"{batch.batch_id}:{number}:0" for number in range(12))
    assert (results.went_back, results.repeated) == (1, 3)
    assert "Redis has lost its last writes" in caplog.text


@pytest.mark.both_carriers
async def test_a_cursor_behind_which_the_log_went_back_is_a_conflict_that_says_where_to_go_on(
    farm: AsyncFarm, served: httpx.AsyncClient, worker: Any, row: Row
) -> None:
    batch = await begin(farm, worker, row, ended=2)
    path = f"/v1/batches/{batch.batch_id}/results"
    agreed = (await served.get(path)).json()["next_after"]
    put_back = await copy(worker, batch.batch_id)
    await end(worker, batch.batch_id, 2)
    ahead = (await served.get(path)).json()["next_after"]
    await put_back()
    for _ in range(2):
        answer = await served.get(path, params={"after": ahead})
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "log_went_back")
        assert answer.json()["error"]["details"] == {"field": "after", "after": ahead, "resume_after": agreed}
        stream = await served.get(path, params={"after": ahead}, headers={"accept": "application/x-ndjson"})
        assert stream.status_code == 409
        await end(worker, batch.batch_id, 4)  # the log is longer than it was
    rest = (await served.get(path, params={"after": agreed})).json()["items"]
    assert len(rest) == 8


async def test_a_log_that_grew_again_under_a_clock_that_is_behind_is_noticed(
    served: httpx.AsyncClient, farm: AsyncFarm, worker: Any, row: Row
) -> None:
    batch = await begin(farm, worker, row, ended=9)
    path = f"/v1/batches/{batch.batch_id}/results"
    ms, _, number = (await served.get(path)).json()["next_after"].partition("-")
    ahead = f"{int(ms) + 60_000}-{int(number) - 4}"
    answer = await served.get(path, params={"after": ahead})
    assert (answer.status_code, answer.json()["error"]["details"]["resume_after"]) == (409, "0-0")


async def test_a_result_that_was_taken_back_is_no_log_that_went_back(
    served: httpx.AsyncClient, farm: AsyncFarm, worker: Any, row: Row
) -> None:
    batch = await farm.submit([row] * 3)
    [first, second, third] = await worker.claim(batch.batch_id)
    await worker.end(first)
    await worker.end(second, kind="tool_error")
    path = f"/v1/batches/{batch.batch_id}/results"
    behind_second = (await served.get(path)).json()["next_after"]
    await batch.requeue()
    assert (await served.get(path, params={"after": behind_second})).json()["items"] == []
    await worker.end(third)
    items = (await served.get(path, params={"after": behind_second})).json()["items"]
    assert [item["rollout_id"] for item in items] == [f"{batch.batch_id}:{third.member}"]


async def test_a_consumer_is_handed_nothing_twice_without_a_warning(
    farm: AsyncFarm, worker: Any, row: Row, caplog: pytest.LogCaptureFixture
) -> None:
    batch = await begin(farm, worker, row, ended=4)
    used: list[str] = []
    async with aclosing(batch.leased("trainer", most=4)) as results:
        used.append((await anext(results)).rollout_id)
        put_back = await copy(worker, batch.batch_id)  # nothing is acknowledged yet
        used += [(await anext(results)).rollout_id for _ in range(3)]
        await end(worker, batch.batch_id, 3)
        used += [(await anext(results)).rollout_id for _ in range(3)]
        await put_back()
        await end(worker, batch.batch_id, 12)
        used += [result.rollout_id async for result in results]
    assert sorted(used) == sorted(f"{batch.batch_id}:{number}:0" for number in range(12))
    assert "may come again" in caplog.text


@pytest.mark.both_carriers
async def test_events_tell_that_the_log_went_back_and_go_on(farm: AsyncFarm, worker: Any, row: Row) -> None:
    batch = await begin(farm, worker, row, ended=2)
    put_back = await copy(worker, batch.batch_id)
    await end(worker, batch.batch_id, 2)
    told: list[str] = []
    async with aclosing(batch.events()) as events:
        while told.count("rollout") < 4:
            told.append((await anext(events)).kind)
        await put_back()
        await end(worker, batch.batch_id, 12)
        told.clear()
        told += [event.kind async for event in events]
    assert told.count("log_went_back") == 1
    assert told.count("rollout") == 10
    assert told[-1] == "batch"


async def test_a_stream_of_events_tells_it_and_goes_on(
    farm: AsyncFarm, served: httpx.AsyncClient, worker: Any, row: Row
) -> None:
    batch = await begin(farm, worker, row, ended=2)
    put_back = await copy(worker, batch.batch_id)
    await end(worker, batch.batch_id, 2)
    kinds: list[str] = []
    async with served.stream("GET", f"/v1/batches/{batch.batch_id}/events") as answer:
        async for line in answer.aiter_lines():
            name, _, value = line.partition(": ")
            if name == "event":
                kinds.append(value)
            if kinds.count("rollout") == 4 and "log_went_back" not in kinds and value == "rollout":
                await put_back()
            if value == "log_went_back":
                await end(worker, batch.batch_id, 12)
    assert kinds.count("log_went_back") == 1
    assert kinds.count("rollout") == 4 + 10


async def test_a_stream_of_results_says_so_in_its_last_line_and_does_not_look_complete(
    farm: AsyncFarm, served: httpx.AsyncClient, worker: Any, row: Row
) -> None:
    batch = await begin(farm, worker, row, ended=2)
    put_back = await copy(worker, batch.batch_id)
    await end(worker, batch.batch_id, 2)
    lines: list[Any] = []

    async def read() -> None:
        accept = {"accept": "application/x-ndjson"}
        async with served.stream("GET", f"/v1/batches/{batch.batch_id}/results", headers=accept) as answer:
            async for line in answer.aiter_lines():
                lines.extend([orjson.loads(line)] if line else [])
                if len(lines) == 4:
                    await put_back()

    with pytest.raises(httpx.RemoteProtocolError):
        await read()
    assert [line.get("outcome") for line in lines] == ["succeeded"] * 4 + [None]
    assert lines[-1]["error"]["code"] == "log_went_back"


async def test_a_single_lease_raises_it(farm: AsyncFarm, row: Row) -> None:
    batch = await farm.submit([row])
    with pytest.raises(Conflict) as raised:
        await batch.lease(consumer="c", position="1700000000000-1000009")
    assert raised.value.code == "log_went_back"


async def test_results_whose_acknowledgement_was_lost_are_passed_over_with_a_warning(
    farm: AsyncFarm, worker: Any, row: Row, caplog: pytest.LogCaptureFixture
) -> None:
    batch = await begin(farm, worker, row, ended=12)
    put_back = await copy(worker, batch.batch_id)  # nothing is handed out yet
    used: list[str] = []
    async with aclosing(batch.leased("trainer", most=4)) as results:
        used += [(await anext(results)).rollout_id for _ in range(9)]
        await put_back()
        used += [result.rollout_id async for result in results]
    assert sorted(used) == sorted(f"{batch.batch_id}:{number}:0" for number in range(12))
    assert "come again: Redis has lost their acknowledgement" in caplog.text
