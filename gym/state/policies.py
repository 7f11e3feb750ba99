"""Where policies are served: the records in Redis, and the copy that every process keeps of them.

A process asks for the revision often and for the records when it has grown, so a change is seen within `REFRESH_S`.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

import orjson

from gym.errors import NotFound
from gym.policy import PolicySpec
from gym.proxy.policies import PolicyRecord
from gym.state.store import RedisAway, Store

REFRESH_S = 0.5
_LOG = logging.getLogger(__name__)


class Policies:
    """Puts, gets and deletes policies."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def put(self, name: str, spec: PolicySpec) -> PolicyRecord:
        """Register or replace; takes effect for the next model call everywhere within a second."""
        record = {"spec": spec.model_dump(mode="json"), "revision": await self._next_revision(), "paused": None}
        await self._write(name, record)
        return _record(name, record)

    async def get(self, name: str) -> PolicyRecord:
        """Raises NotFound."""
        value = await self._store.redis.hget(self._store.keys.policies, name)
        if value is None:
            raise policy_not_found(name)
        return _record(name, orjson.loads(value))

    async def all(self) -> dict[str, PolicyRecord]:
        """Every registered policy by name."""
        values = await self._store.redis.hgetall(self._store.keys.policies)
        return {name.decode(): _record(name.decode(), orjson.loads(value)) for name, value in values.items()}

    async def delete(self, name: str) -> bool:
        """Whether there was one."""
        removed = await self._store.redis.hdel(self._store.keys.policies, name)
        await self._next_revision()
        return bool(removed)

    async def revision(self) -> int:
        """Grows with every change."""
        return int(await self._store.redis.get(self._store.keys.policies_revision) or 0)

    async def _write(self, name: str, record: dict[str, object]) -> None:
        await self._store.redis.hset(self._store.keys.policies, name, orjson.dumps(record))
        await self._next_revision()

    async def _next_revision(self) -> int:
        return int(await self._store.redis.incr(self._store.keys.policies_revision))


@dataclass(slots=True)
class PolicyCache:
    """A process's copy of the records; `get` is what the proxy asks."""

    policies: Policies
    records: dict[str, PolicyRecord]
    revision: int = -1

    @classmethod
    def of(cls, store: Store) -> PolicyCache:
        return cls(Policies(store), {})

    def get(self, name: str) -> PolicyRecord | None:
        """The record as it was within the last moments."""
        return self.records.get(name)

    async def refresh(self) -> None:
        """Look for changes once."""
        revision = await self.policies.revision()
        if revision != self.revision:
            self.records = await self.policies.all()
            self.revision = revision

    async def keep_fresh(self) -> None:
        """Look for changes until cancelled; while Redis is away the last copy stands."""
        while True:
            try:
                await self.refresh()
            except RedisAway as error:
                _LOG.warning("policies not refreshed: %s", error, extra={"action": "policies_stale"})
            await asyncio.sleep(REFRESH_S)


def policy_not_found(name: str) -> NotFound:
    return NotFound(
        "policy_not_found", f"there is no policy {name}; register it with PUT /v1/policies/{name}", {"policy": name}
    )


def _record(name: str, value: dict[str, object]) -> PolicyRecord:
    spec = PolicySpec.model_validate(value["spec"])
    return PolicyRecord(
        name=name,
        spec=spec,
        revision=int(str(value["revision"])),
        paused=value.get("paused"),  # type: ignore[arg-type]  # written by `put` only
        version=spec.version,
    )
