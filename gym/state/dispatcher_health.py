"""Health reports of the leading dispatcher, so that readiness does not depend on its lock alone."""

from __future__ import annotations

import time

import orjson
from redis.exceptions import RedisError

from gym.state.redis.store import Store
from gym.state.redis.unreadable import read_object, read_or_none, reason

SAY_EVERY_S = 1.0
TTL_MS = 60_000


class DispatcherHealth:
    """Writer of the reports; one per dispatcher."""

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self._name = name
        self._well = False
        self._say_again_at = 0.0

    async def ticked(self) -> None:
        """Report a successful tick, at once after a failure and otherwise once a second."""
        if not self._well or time.monotonic() >= self._say_again_at:
            await self._say("")
            self._well = True

    async def failed(self, error: Exception) -> None:
        """Report a failed tick, once a second."""
        if self._well or time.monotonic() >= self._say_again_at:
            self._well = False
            try:
                await self._say(reason(error))
            except RedisError:
                return  # readiness asks Redis itself

    async def _say(self, trouble: str) -> None:
        self._say_again_at = time.monotonic() + SAY_EVERY_S
        at = await self._store.now_ms()
        text = orjson.dumps({"dispatcher": self._name, "at": at, "trouble": trouble})
        await self._store.insist(self._store.keys.dispatcher_tick, "SET", text, "PX", TTL_MS)


async def dispatcher_trouble(store: Store) -> str | None:
    """Return why the leading dispatcher cannot tick, `None` if its last tick succeeded or none is reported."""
    text = await store.redis.get(store.keys.dispatcher_tick)
    said = read_or_none("tick of the dispatcher", "last", read_object, text) if text else None
    trouble = said.get("trouble") if said else None
    return str(trouble) if trouble else None
