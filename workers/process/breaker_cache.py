"""A worker's copy of the breakers, read about once a second, so that a success costs no round trip.

What has failed somewhere lately is compared with what was seen at work here since, and that is reported; what opens or
closes is passed on. `workers.rollouts.breaker_reports` and `workers.judging.breaker_reports` know what a sign of life
is.
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
IDLE_REFRESH_S = 4.0  # where nothing runs that could fail or show that something works
_LOG = logging.getLogger(__name__)


class BreakerCache:
    """One per worker, on its event loop. `on_open` and `on_release` hear of what is parked, and may be tried again."""

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
        self._known: dict[BreakerKey, tuple[float, Breaker]] = {}  # with the moment when it was first seen so

    @property
    def any(self) -> bool:
        """Whether anything has failed lately."""
        return bool(self._known)

    @property
    def any_open(self) -> bool:
        """Whether anything is parked."""
        return any(breaker.open for _, breaker in self._known.values())

    def all(self) -> list[tuple[float, Breaker]]:
        """What has failed lately, each with the moment (`time.monotonic()`) when it was first seen as it is."""
        return list(self._known.values())

    def get(self, key: BreakerKey) -> Breaker | None:
        """One of them."""
        known = self._known.get(key)
        return None if known is None else known[1]

    def parked(self, key: BreakerKey) -> Breaker | None:
        """One of them if it is open."""
        breaker = self.get(key)
        return breaker if breaker is not None and breaker.open else None

    async def keep_fresh(
        self, alive_at: Callable[[Breaker], float | None], *, busy: Callable[[], bool] = lambda: True
    ) -> None:
        """Look what has failed elsewhere and report what works here, until cancelled.

        `alive_at` says when something was last seen at work here, of `time.monotonic()`; `busy` whether anything runs.
        """
        while True:
            try:
                await self.refresh()
                await self.report_alive(alive_at)
            except RedisError as error:
                _LOG.warning("breakers not refreshed: %s", error, extra={"action": "breakers_stale"})
            await asyncio.sleep(REFRESH_S if self._known or busy() else IDLE_REFRESH_S)

    async def refresh(self) -> None:
        """Read them now. Raises redis-py's errors."""
        self._learn(await self._breakers.all())

    async def report_alive(self, alive_at: Callable[[Breaker], float | None]) -> None:
        """Report what was seen at work since it was known to fail. Raises redis-py's errors."""
        for since, breaker in self.all():
            seen = alive_at(breaker)
            if seen is not None and seen > since:
                await self.report(breaker.key)

    async def report(self, key: BreakerKey) -> None:
        """It works. Raises redis-py's errors."""
        known = self._known.pop(key, None)  # it is reported once, whatever else ends meanwhile
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
        """Count a failure; `seen` is when it was last seen at work here, of `time.monotonic()`."""
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
        """A probe ended without a failure that counts: it has shown a sign of life, or nothing."""
        try:
            if alive:
                await self.report(key)
            else:
                await self._breakers.probe_missed(key)
        except RedisError as error:
            _LOG.warning("probe not reported: %s", error, extra={"action": "breakers_stale"})

    async def probe_lost(self, key: BreakerKey) -> None:
        """A probe came here and is not run, or there is news of what it would try: another may go at once."""
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
