"""The client's leases and events against the real API, over both transports, with a worker controlled by the test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import anyio
import httpx
import pytest

from gym.client import AsyncBatch, AsyncFarm, connect, connect_sync

pytestmark = [pytest.mark.anyio, pytest.mark.both_carriers]
Row = dict[str, Any]


@pytest.fixture
def url(carrier: str, served: httpx.AsyncClient, redis_url: str, new_client: Any) -> str:
    """Where a client connects to."""
    return str(served.base_url) if carrier == "http" else str(new_client(redis_url))


@pytest.fixture
async def farm(url: str) -> AsyncIterator[AsyncFarm]:
    async with connect(url) as farm:
        yield farm


async def batch_of(farm: AsyncFarm, worker: Any, row: Row, rows: int, **options: Any) -> AsyncBatch:
    batch = await farm.submit([row] * rows, **options)
    await worker.end_all(batch.batch_id)
    return batch


async def test_a_process_that_dies_leaves_what_it_had_not_used_to_the_next(
    farm: AsyncFarm, worker: Any, row: Row
) -> None:
    batch = await batch_of(farm, worker, row, 7)
    used: list[str] = []

    async def train() -> None:
        async with aclosing(batch.leased("trainer", most=5, ttl_s=0.2)) as results:
            async for result in results:
                if len(used) == 3:
                    raise RuntimeError("dies")
                used.append(result.rollout_id)

    with pytest.raises(RuntimeError, match="dies"):
        await train()
    rest = [result.rollout_id async for result in batch.leased("trainer", most=2)]
    assert sorted(used + rest) == [f"{batch.batch_id}:{number}:0" for number in range(7)]


async def test_two_processes_of_a_consumer_share_and_another_consumer_has_all(
    farm: AsyncFarm, worker: Any, row: Row
) -> None:
    batch = await batch_of(farm, worker, row, 20)
    seen: dict[str, list[str]] = {"one": [], "two": [], "other": []}

    async def consume(process: str, consumer: str) -> None:
        async for result in batch.leased(consumer, most=3):
            seen[process].append(result.rollout_id)

    async with anyio.create_task_group() as group:
        group.start_soon(consume, "one", "shared")
        group.start_soon(consume, "two", "shared")
        group.start_soon(consume, "other", "alone")
    assert len(seen["other"]) == 20
    assert sorted(seen["one"] + seen["two"]) == sorted(seen["other"])


async def test_groups_come_whole_to_a_client_that_blocks(url: str, farm: AsyncFarm, worker: Any, row: Row) -> None:
    batch = await batch_of(farm, worker, row, 3, num_samples=4)

    def read() -> tuple[list[int], list[str]]:
        with connect_sync(url) as blocking:
            same = blocking.batch(batch.batch_id)
            sizes = [len({result.sample_index for result in group}) for group in same.leased_groups("t", most=2)]
            return sizes, [event.kind for event in same.events()]

    sizes, kinds = await anyio.to_thread.run_sync(read)
    assert len(sizes) == 3
    assert (kinds.count("rollout"), kinds.count("group"), kinds[-1]) == (12, 3, "batch")


async def test_events_go_on_from_a_cursor_and_end_with_the_batch(farm: AsyncFarm, worker: Any, row: Row) -> None:
    batch = await farm.submit([row] * 3, sealed=False)
    await worker.end_all(batch.batch_id)
    told: list[str] = []
    after = None
    async with aclosing(batch.events()) as events:
        async for event in events:
            if event.kind == "rollout":
                told.append(event.data["rollout_id"])
            after = event.after or after
            if event.kind == "group" and len(told) == 2:
                break
    await batch.seal()
    rest = [event async for event in batch.events(after=after)]
    told += [event.data["rollout_id"] for event in rest if event.kind == "rollout"]
    assert told == [f"{batch.batch_id}:{number}:0" for number in range(3)]
    assert (rest[-1].kind, rest[-1].data["state"]) == ("batch", "done")
