"""Sending of state changes to Redis: one round trip carries all that gathered during the last one.

A change waits through an absence of Redis for as long as the worker lives: finished rollouts are committed when Redis
is back. Every script is repeatable, so a change whose answer was lost is sent again.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from contextlib import suppress
from typing import Any

from gym.state.redis.driver import DataError, OutOfMemoryError, RedisError
from gym.state.redis.store import ScriptCall, Store, insisting, will_pass

MAX_BATCH = 256
GATHER_S = 0.02
SETTLE_S = 1.0
_LOG = logging.getLogger(__name__)


Change = tuple[ScriptCall, asyncio.Future[Any]]


class Committer:
    """The committer of one worker; `run` is its task."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: list[Change] = []
        self._some = asyncio.Event()
        self.totals: dict[str, int] = {}

    async def send(self, call: ScriptCall) -> Any:
        """Return the script's answer. Raises redis-py's ResponseError, or the reason why it cannot be sent."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((call, future))
        self._some.set()
        return await future

    def add_total(self, name: str, by: int = 1) -> None:
        """Add to a counter of the whole farm; sent with the next changes."""
        self.totals[name] = self.totals.get(name, 0) + by
        self._some.set()

    async def settle(self) -> None:
        """Wait until everything has been sent, but not for longer than `SETTLE_S`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_S):
                while self._waiting or self.totals:  # noqa: ASYNC110 - it is waited for once, at the end
                    await asyncio.sleep(GATHER_S / 4)

    async def run(self) -> None:
        """Send until cancelled: at once after a pause, and together the changes that come within `GATHER_S` of that."""
        loop = asyncio.get_running_loop()
        sent_at = -math.inf
        while True:
            await self._some.wait()
            await asyncio.sleep(max(0.0, sent_at + GATHER_S - loop.time()))
            self._some.clear()
            sent_at = loop.time()
            while self._waiting or self.totals:
                batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
                await self._send(batch)

    async def _send(self, batch: list[Change]) -> None:
        """Send until each change has its answer; those that Redis cannot take now are sent again."""
        failures = 0
        while True:
            try:
                batch, error = await self._send_once(batch)
                if error is None:
                    await self._side_effects()
                    return
            except DataError as odd:
                await self._refuse(batch, odd)
                return
            except RedisError as away:
                error = away
            except Exception as odd:  # noqa: BLE001  a change that cannot be sent must not hold up the others
                await self._refuse(batch, odd)
                return
            failures += 1
            if failures == 1 or failures % 30 == 0:
                _LOG.warning("%d changes wait for Redis: %s", len(batch), error, extra={"action": "commit_waiting"})
            await asyncio.sleep(min(2.0, 0.1 * 2**failures) * random.uniform(0.5, 1.0))

    async def _refuse(self, batch: list[Change], error: Exception) -> None:
        """Give back the change that cannot be sent at all, and send the others."""
        if len(batch) > 1:
            for change in batch:
                await self._send([change])
            return
        for _, future in batch:
            if not future.done():
                future.set_exception(error)

    async def _send_once(self, batch: list[Change]) -> tuple[list[Change], Exception | None]:
        """Send once; return the changes to send again, and the reason."""
        if not batch:
            return [], None
        answers = await self._store.run_many([call for call, _ in batch])
        again: list[Change] = []
        reason = None
        for (call, future), answer in zip(batch, answers, strict=True):
            if isinstance(answer, Exception) and may_pass(answer):
                again.append((call, future))
                reason = answer
            elif future.done():  # the caller was cancelled; the change is made
                continue
            elif isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)
        return again, reason

    async def _side_effects(self) -> None:
        """Wake the dispatcher, since slots have become free, and add to the farm's counters."""
        totals, self.totals = self.totals, {}
        keys = self._store.keys
        pipeline = self._store.redis.pipeline(transaction=False)
        for name, by in totals.items():
            pipeline.eval(*insisting(keys.totals, "HINCRBY", name, by))
        pipeline.eval(*insisting(keys.wake, "LPUSH", "1"))
        pipeline.ltrim(keys.wake, 0, 0)
        try:
            await pipeline.execute(raise_on_error=False)
        except RedisError:
            self.totals = {name: totals.get(name, 0) + self.totals.get(name, 0) for name in totals | self.totals}
            raise


def may_pass(error: Exception) -> bool:
    """Return whether a change is to be sent again: Redis is away, cannot serve, or is full."""
    return will_pass(error) or isinstance(error, OutOfMemoryError)
