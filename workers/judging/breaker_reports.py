"""Reports of a judge worker to the circuit breakers of judges, and its copy of them.

A rollout whose judging got no answer counts as one failure of the judge that gave none, however often it tries.
Refusals and unreadable answers count as answers, too. No attempt is refunded, since judging uses none up.
"""

from __future__ import annotations

import asyncio
import logging

from gym.errors import JudgeParked, JudgeUnreachable, RolloutError
from gym.judges.desk import Desk
from gym.model_client.routing.served_model import ModelSource
from gym.state.ledger.breakers import Breaker, BreakerKey, BreakerKind, Breakers, Casualty, judge_key
from gym.state.redis.driver import RedisError
from workers.judging.runner import JudgedRollout
from workers.process.breaker_cache import REFRESH_S, BreakerCache
from workers.process.committer import Committer

_LOG = logging.getLogger(__name__)


class JudgeBreakerReports:
    """The breaker reports of one judge worker, on its event loop; `keep_fresh` and `watch_replicas` are its tasks."""

    def __init__(self, breakers: Breakers, committer: Committer, desk: Desk, replicas: ModelSource) -> None:
        self._desk = desk
        self._replicas = replicas
        self._revisions: dict[str, int | None] = {}
        self._cache = BreakerCache(breakers, committer, on_open=self._park, on_release=self.reopen)

    def parked(self, judge: str) -> Breaker | None:
        """Return the open breaker of a judge, as far as it is known here."""
        return self._cache.parked(judge_key(judge)) if self._cache.any else None

    def reopen(self, key: BreakerKey) -> None:
        """Let a judge be asked again, since its breaker is probed or closed."""
        if key.kind is BreakerKind.JUDGE:
            self._desk.reopen(key.name)

    async def ended(self, judged: JudgedRollout, error: RolloutError | None) -> None:
        """Report the outcome of one judging attempt to the circuit breakers, before it is committed."""
        failed = self._blamed(error)
        if failed is not None and error is not None:
            await self._failed(failed, judged, error)
        if self._cache.any:
            try:
                await self._cache.report_alive(self._alive_at)
            except RedisError as away:  # `keep_fresh` reports it when Redis is back
                _LOG.warning("answer not reported: %s", away, extra={"action": "breakers_stale"})
        probe = judged.probe
        if probe is not None and probe != failed:
            seen = self._desk.answered_at(probe.name)
            await self._cache.settle_probe(probe, alive=seen is not None and seen >= judged.began)

    async def refresh(self) -> None:
        """Read the breakers now, since much depends on it; without Redis the last copy remains valid."""
        try:
            await self._cache.refresh()
        except RedisError as error:
            _LOG.warning("breakers not refreshed: %s", error, extra={"action": "breakers_stale"})

    async def keep_fresh(self) -> None:
        """Read failures elsewhere and report judges that answer here, until cancelled."""
        await self._cache.keep_fresh(self._alive_at)

    async def watch_replicas(self) -> None:
        """Probe a parked judge at once when its replicas change; runs until cancelled."""
        while True:
            for _, breaker in self._cache.all():
                if breaker.open and breaker.key.kind is BreakerKind.JUDGE and self._has_news(breaker.key.name):
                    await self._cache.probe_lost(breaker.key)
            await asyncio.sleep(REFRESH_S)

    async def probe_lost(self, key: BreakerKey) -> None:
        """Report that a probe arrived and was not run: another may be sent at once."""
        await self._cache.probe_lost(key)

    async def _failed(self, key: BreakerKey, judged: JudgedRollout, error: RolloutError) -> None:
        claim, probe = judged.claim, judged.probe == key
        seen = self._desk.answered_at(key.name)
        who = Casualty(claim.batch_id, claim.member, claim.attempt, claim.token if probe else str(claim.over_at))
        answer = await self._cache.failed(key, who, seen=seen, probe=probe, error=error)
        if answer.open and self._cache.parked(key) is None:
            await self.refresh()  # so that nothing more is sent from here

    def _park(self, key: BreakerKey) -> None:
        if key.kind is BreakerKind.JUDGE:
            record = self._replicas.get(key.name)
            self._revisions[key.name] = None if record is None else record.revision
            self._desk.park(key.name)

    def _alive_at(self, breaker: Breaker) -> float | None:
        return self._desk.answered_at(breaker.key.name) if breaker.key.kind is BreakerKind.JUDGE else None

    def _has_news(self, judge: str) -> bool:
        record = self._replicas.get(judge)
        revision = None if record is None else record.revision
        before = self._revisions.get(judge)
        self._revisions[judge] = revision
        return revision is not None and revision != before

    @staticmethod
    def _blamed(error: RolloutError | None) -> BreakerKey | None:
        if isinstance(error, JudgeUnreachable) and not isinstance(error, JudgeParked) and error.judge:
            return judge_key(error.judge)
        return None
