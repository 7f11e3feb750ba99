"""Notification of processes about changes of a policy."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from gym.policy import PolicySpec
from gym.state.policies import Policies, PolicyCache
from gym.state.redis.store import Store, end_tasks

pytestmark = pytest.mark.anyio
SPEC = PolicySpec(base_urls=["http://127.0.0.1:9/v1"], model="m")
LONG_S = 60.0


@pytest.fixture
async def policies(store: Store) -> Policies:
    return Policies(store)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(LONG_S / 2):
        while not holds():  # noqa: ASYNC110 - a cache has no event for it
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("change", ["put", "pause", "resume", "delete"])
async def test_whoever_waits_for_a_change_is_woken_by_each_kind(policies: Policies, change: str) -> None:
    await policies.put("p", SPEC)
    seen = await policies.changed("0-0", wait_s=LONG_S)
    waits = asyncio.create_task(policies.changed(seen, wait_s=LONG_S))
    await asyncio.sleep(0)
    match change:
        case "put":
            await policies.put("p", SPEC)
        case "pause":
            await policies.pause("p", "hold", timeout_s=0)
        case "resume":
            await policies.resume("p", 3)
        case "delete":
            await policies.delete("p")
    async with asyncio.timeout(LONG_S / 2):
        assert await waits != seen


async def test_without_a_change_the_wait_ends_with_the_mark_that_was_known(policies: Policies) -> None:
    await policies.put("p", SPEC)
    seen = await policies.changed("0-0", wait_s=LONG_S)
    assert await policies.changed(seen, wait_s=0.01) == seen


async def test_a_change_that_came_before_the_wait_is_told_at_once(policies: Policies) -> None:
    await policies.put("p", SPEC)
    seen = await policies.changed("0-0", wait_s=LONG_S)
    await policies.put("p", SPEC)
    async with asyncio.timeout(LONG_S / 2):
        assert await policies.changed(seen, wait_s=LONG_S) != seen


async def test_an_idle_process_obeys_a_pause_and_hears_of_one_that_nobody_announced(
    policies: Policies, store: Store
) -> None:
    await policies.put("p", SPEC)
    cache = PolicyCache(store, "idle")
    keeps = asyncio.create_task(cache.keep_fresh(dict))
    try:
        await until(lambda: cache.get("p") is not None)
        assert (await policies.pause("p", "hold", timeout_s=LONG_S)).obeyed
        record = cache.get("p")
        assert record is not None
        assert record.paused == "hold"
        await store.redis.hset(store.keys.policies_version, "p", 8)  # as by a process that knows of no announcements
        await store.redis.incr(store.keys.policies_revision)
        await until(lambda: (now := cache.get("p")) is not None and now.version == 8)
    finally:
        await end_tasks([keeps])
