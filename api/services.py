"""Shared objects of the routes; made once by `api.app` and passed to each request."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from api.session_calls import SessionCalls
from api.shutdown import Shutdown
from api.single_rows import SingleRows
from gym.captures.recording import Captures
from gym.config import Settings
from gym.environments.registry import Registry
from gym.errors import Overloaded
from gym.relay.server import RelayServer
from gym.state.alarms import Alarms
from gym.state.leases import Leases
from gym.state.ledger.batches import Batches
from gym.state.ledger.breakers import Breaker, Breakers, parked_now, read_breakers
from gym.state.ledger.ends import FIELDS
from gym.state.ledger.feed import Feed
from gym.state.ledger.results import ResultLog
from gym.state.policies import Policies
from gym.state.redis import unreadable
from gym.state.redis.store import Store
from gym.state.redis.unreadable import read_or_none

BACKLOG_AGE_S = 1.0


class Backlog:
    """Number of queued rollouts, read from Redis at most once a second."""

    def __init__(self, store: Store, most: int) -> None:
        self._store = store
        self._most = most
        self._queued = 0
        self._read_at = -BACKLOG_AGE_S
        self._lock = asyncio.Lock()

    async def check_room(self, rollouts: int) -> None:
        """Raise Overloaded if adding this many rollouts would exceed the limit."""
        queued = await self._current()
        if queued + rollouts <= self._most:
            return
        if rollouts > self._most:
            advice = "one submission exceeds the limit; submit fewer rollouts at a time, or raise api.max_backlog"
        else:
            advice = "wait until some have run, then send the same request again"
        raise Overloaded(
            "backlog_full",
            f"{queued} rollouts are queued, and {rollouts} more would exceed the limit of {self._most}; {advice}",
            {"queued": queued, "limit": self._most},
            retry_after_s=10,
        )

    async def _current(self) -> int:
        async with self._lock:
            if time.monotonic() - self._read_at >= BACKLOG_AGE_S:
                found, _ = await active_counters(self._store)
                self._queued = sum(counters["queued"] for _, counters in found)
                self._read_at = time.monotonic()
        return self._queued


MOVING = ("queued", "running", "judging", "dispatched")  # dispatched rollouts are also queued
COUNTERS = (*MOVING, "succeeded", "failed", "cancelled", "expired")
_READ = tuple(dict.fromkeys((*COUNTERS, *FIELDS)))


async def active_counters(store: Store) -> tuple[list[tuple[str, dict[str, int]]], list[Breaker]]:
    """Return the counters of each active batch, oldest first, including its `parked` rollouts; and the breakers.

    They include `gym.state.ledger.ends.FIELDS`.
    """
    pipeline = store.redis.pipeline(transaction=False)
    pipeline.zrange(store.keys.active, 0, -1)
    pipeline.hgetall(store.keys.breakers)
    active, stored = await pipeline.execute()
    breakers = read_breakers(stored)
    names = unreadable.names(active)
    for name in names:
        pipeline.hmget(store.keys.batch(name).meta, _READ)
    answers = await pipeline.execute(raise_on_error=False) if names else []
    counters = [
        read_or_none("counters of batch", name, _counters, values) or dict.fromkeys((*_READ, "parked"), 0)
        for name, values in zip(names, answers, strict=True)
    ]
    if any(breaker.open for breaker in breakers):
        for name, each in zip(names, counters, strict=True):
            each["parked"] = (await parked_now(store, name, breakers)).count
    return list(zip(names, counters, strict=True)), breakers


def _counters(values: list[bytes | None]) -> dict[str, int]:
    return {field: int(value or 0) for field, value in zip(_READ, values, strict=True)} | {"parked": 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Parts of one api process."""

    settings: Settings
    store: Store
    registry: Registry
    batches: Batches
    results: ResultLog
    feed: Feed
    captures: Captures
    policies: Policies
    breakers: Breakers
    leases: Leases
    backlog: Backlog
    single_rows: SingleRows
    sessions: SessionCalls
    alarms: Alarms
    shutdown: Shutdown
    relay: RelayServer | None = None


async def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


Farm = Annotated[Services, Depends(_services)]
