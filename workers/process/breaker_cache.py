"""A worker's copy of the circuit breakers, read about once a second, so that a success costs no round trip.

Recent failures anywhere are compared with later signs of life here, and those are reported; breakers that open or
close are passed on. `workers.rollouts.breaker_reports` and `workers.judging.breaker_reports` define signs of life.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable

from gym.errors import RolloutError
from gym.state.ledger.breakers import Breaker, BreakerKey, BreakerResponse, Breakers, Casualty
from gym.state.redis.driver import RedisError
from workers.process.committer import Committer

REFRESH_S = 1.0
IDLE_REFRESH_S = 4.0  # while nothing runs that could fail or give a sign of life
_LOG = logging.getLogger(__name__)


class BreakerCache:
    """The copy of one worker, on its event loop.

    `on_open` gets breakers that are open, `on_release` those that may be tried again.
    """

    def __init__(
        self,
        breakers: Breakers,
        committer: Committer,
        *,
        on_release: Callable[[BreakerKey], None],
        on_open: Callable[[BreakerKey], None] | None = None,
    ) -> None:
        self._breakers = breakers
        self._committer = committer
        self._on_release = on_release
        self._on_open = on_open
        self._known: dict[BreakerKey, tuple[float, Breaker]] = {}  # with the time when it was first seen in this state

    @property
    def any(self) -> bool:
        """Return whether any breaker has failures."""
        return bool(self._known)

    @property
    def any_open(self) -> bool:
        """Return whether any breaker is open."""
        return any(breaker.open for _, breaker in self._known.values())

    def all(self) -> list[tuple[float, Breaker]]:
        """The breakers with failures, each with the time (`time.monotonic()`) when it was first seen in its state."""
        return list(self._known.values())

    def get(self, key: BreakerKey) -> Breaker | None:
        """Return one of them."""
        known = self._known.get(key)
        return None if known is None else known[1]

    def parked(self, key: BreakerKey) -> Breaker | None:
        """Return one of them if it is open."""
        breaker = self.get(key)
        return breaker if breaker is not None and breaker.open else None

    async def keep_fresh(
        self, alive_at: Callable[[Breaker], float | None], *, busy: Callable[[], bool] = lambda: True
    ) -> None:
        """Read failures elsewhere and report signs of life here, until cancelled.

        `alive_at` gives the time of the last sign of life here, of `time.monotonic()`; `busy` whether anything runs.
        """
        while True:
            try:
                await self.refresh()
                await self.report_alive(alive_at)
            except RedisError as error:
                _LOG.warning("breakers not refreshed: %s", error, extra={"action": "breakers_stale"})
            await asyncio.sleep(REFRESH_S if self._known or busy() else IDLE_REFRESH_S)

    async def refresh(self) -> None:
        """Read the breakers now. Raises redis-py's errors."""
        self._learn(await self._breakers.all())

    async def report_alive(self, alive_at: Callable[[Breaker], float | None]) -> None:
        """Report signs of life that are later than the known failures. Raises redis-py's errors."""
        for since, breaker in self.all():
            seen = alive_at(breaker)
            if seen is not None and seen > since:
                await self.report(breaker.key)

    async def report(self, key: BreakerKey) -> None:
        """Report that it works. Raises redis-py's errors."""
        known = self._known.pop(key, None)  # it is reported once, even if other rollouts end meanwhile
        self._on_release(key)
        try:
            was_open = await self._breakers.alive(key)
        except RedisError:
            if known is not None:
                self._known.setdefault(key, known)
            raise
        if was_open:
            _LOG.warning(
                "%s %s works again: rollouts released", key.kind, key.name, extra={"action": "breaker_released"}
            )

    async def failed(
        self, key: BreakerKey, who: Casualty, *, seen: float | None, probe: bool, error: RolloutError
    ) -> BreakerResponse:
        """Count a failure; `seen` is the time of the last sign of life here, of `time.monotonic()`."""
        call = self._breakers.fail_call(
            key,
            who,
            seen_s=None if seen is None else time.monotonic() - seen,
            probe=probe,
            stage=error.stage,
            error=error.message,
        )
        answer = self._breakers.failed(await self._committer.send(call))
        if answer.opened:
            _LOG.warning(
                "%s %s: rollouts are parked after %d failures in a row: %s",
                key.kind,
                key.name,
                len(answer.before) + 1,
                error.message,
                extra={"action": "breaker_opened"},
            )
            self._committer.add_total("breakers_opened")
        return answer

    async def settle_probe(self, key: BreakerKey, *, alive: bool) -> None:
        """Settle a probe that ended without a failure that counts: it has given a sign of life, or nothing."""
        try:
            if alive:
                await self.report(key)
            else:
                await self._breakers.probe_missed(key)
        except RedisError as error:
            _LOG.warning("probe not reported: %s", error, extra={"action": "breakers_stale"})

    async def probe_lost(self, key: BreakerKey) -> None:
        """Allow another probe at once: one arrived and is not run, or there is news of its target."""
        try:
            await self._breakers.probe_soon(key)
        except RedisError as error:
            _LOG.warning("probe not given back: %s", error, extra={"action": "breakers_stale"})

    def _learn(self, breakers: Iterable[Breaker]) -> None:
        now = time.monotonic()
        before, self._known = self._known, {}
        for breaker in breakers:
            since, earlier = before.get(breaker.key, (now, breaker))
            self._known[breaker.key] = (since if earlier.opened_at == breaker.opened_at else now, breaker)
        for key, (_, earlier) in before.items():
            if earlier.open and self.parked(key) is None:
                self._on_release(key)
        for key, (_, breaker) in self._known.items():
            if breaker.open and self._on_open is not None and not (key in before and before[key][1].open):
                self._on_open(key)
