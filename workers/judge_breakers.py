"""What a judge worker tells the breakers of its judges, and hears of them.

What counts as a failure is that no replica answered: one that is full, or slow, or answers with errors is not away.
A verdict costs no round trip: signs of life are noted here and reported only where a judge has failed lately. All tries
of one rollout count as one failure, so that one alone never parks a judge's line.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from redis.exceptions import RedisError

from gym.errors import JudgeFailed, JudgeUnreachable, VerifierFailed
from gym.state.breakers import Breaker, BreakerKey, BreakerKind, Breakers, Casualty, judge_key
from gym.state.judging import JudgeClaim
from workers.committer import Committer
from workers.judge_runner import Decided, Found, Undecided

REFRESH_S = 1.0
ANY_TRY = "judging"  # in place of a token: whichever of its tries failed
_LOG = logging.getLogger(__name__)


class JudgeBreakers:
    """One per judge worker, on its event loop; `keep_fresh` is its task.

    `replicas` says where a judge answers now: one that has come up is probed at once. `on_park` is told of a judge that
    is parked, and why.
    """

    def __init__(
        self,
        breakers: Breakers,
        committer: Committer,
        *,
        replicas: Callable[[str], tuple[str, ...]],
        on_park: Callable[[str, str], None],
    ) -> None:
        self._breakers = breakers
        self._committer = committer
        self._replicas = replicas
        self._on_park = on_park
        self._known: dict[BreakerKey, Breaker] = {}
        self._alive_at: dict[BreakerKey, float] = {}
        self._seen_at: dict[BreakerKey, tuple[str, ...]] = {}  # replicas when it was last looked at

    async def tried(self, claim: JudgeClaim, found: Found, *, probe: bool) -> None:
        """A try is over."""
        key = judge_key(claim.judge)
        error = found.error if isinstance(found, Undecided) else found
        if isinstance(error, JudgeUnreachable):
            if error.away and error.judge == claim.judge:
                await self._failed(key, claim, error, probe=probe)
                return
        elif _is_answer(found):
            self._alive_at[key] = time.monotonic()
            if probe or key in self._known:
                await self._report(key)
            return
        if probe:
            await self._bounded(self._breakers.probe_missed, key)

    async def probe_lost(self, judge: str) -> None:
        """A probe came here and was not tried: another may go at once."""
        await self._bounded(self._breakers.probe_soon, judge_key(judge))

    async def keep_fresh(self) -> None:
        """Look what has failed elsewhere, and have a judge whose replicas have changed probed, until cancelled."""
        while True:
            try:
                known = await self._breakers.all()
                self._known = {each.key: each for each in known if each.key.kind is BreakerKind.JUDGE}
                for key, breaker in [each for each in self._known.items() if each[1].open]:
                    self._on_park(key.name, breaker.error)
                    replicas = self._replicas(key.name)
                    if replicas and self._seen_at.setdefault(key, replicas) != replicas:
                        await self._breakers.probe_soon(key)
                    self._seen_at[key] = replicas
                for key in self._seen_at.keys() - self._known.keys():
                    del self._seen_at[key]
            except RedisError as error:
                _LOG.warning("breakers not refreshed: %s", error, extra={"action": "breakers_stale"})
            await asyncio.sleep(REFRESH_S)

    async def _failed(self, key: BreakerKey, claim: JudgeClaim, error: JudgeUnreachable, *, probe: bool) -> None:
        seen = self._alive_at.get(key)
        who = Casualty(claim.batch_id, claim.member, claim.attempt, claim.token if probe else ANY_TRY)
        call = self._breakers.fail_call(
            key,
            who,
            seen_s=None if seen is None else time.monotonic() - seen,
            probe=probe,
            stage=error.stage,
            error=error.message,
        )
        known = self._known.get(key)
        answer = self._breakers.failed(await self._committer.send(call))
        if answer.opened and not (known and known.open):
            _LOG.warning(
                "judge %s: rollouts are parked after %d failures in a row: %s",
                key.name,
                len(answer.before) + 1,
                error.message,
                extra={"action": "breaker_opened"},
            )
            self._committer.add_total("breakers_opened")
        if answer.open:
            self._on_park(key.name, error.message)

    async def _report(self, key: BreakerKey) -> None:
        self._known.pop(key, None)
        if await self._bounded(self._breakers.alive, key):
            _LOG.warning("judge %s answers again: rollouts released", key.name, extra={"action": "breaker_released"})

    async def _bounded(self, tell: Callable[[BreakerKey], Awaitable[object]], key: BreakerKey) -> object:
        try:
            return await tell(key)
        except RedisError as error:
            _LOG.warning("%s not told: %s", key, error, extra={"action": "breakers_stale"})
            return None


def _is_answer(found: Found) -> bool:
    """Whether the judge itself has said something, readable or not."""
    if isinstance(found, Decided):
        return not found.verdicts or any(not verdict.cached for verdict in found.verdicts)
    return isinstance(found, (JudgeFailed, VerifierFailed))
