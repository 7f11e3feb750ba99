"""Repair of counters that contradict a batch's contents."""

from __future__ import annotations

from gym.state.redis.store import Store, load_script
from gym.state.repair.audit import MOST_LIVE

PAGE = 1000

_COUNT_DONE = load_script("count_done")
_RECOUNT = load_script("recount")


async def recount(store: Store, batch_id: str) -> bool:
    """Recount a batch in bounded steps; return False if it changed meanwhile or is too large."""
    keys = store.keys.batch(batch_id).scripted()
    cursor, there, found = "0", 0, [0, 0, 0, 0]
    while True:
        answer = await store.run(_COUNT_DONE, keys, [cursor, PAGE])
        cursor, there = answer[0].decode(), int(answer[1])
        found = [total + more for total, more in zip(found, answer[2:], strict=True)]
        if cursor == "0":
            break
    if sum(found) != there:
        return False
    return bool(await store.run(_RECOUNT, keys, [MOST_LIVE, there, *found]))
