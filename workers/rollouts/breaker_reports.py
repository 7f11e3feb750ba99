"""Reports of a worker to the circuit breakers, and its copy of them.

A success costs no round trip: signs of life are noted here, and reported about once a second, only for breakers with
recent failures. An infrastructure failure is one call, whose answer tells whether the breaker is open: then the rollout
is handed back as if it had not run.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable

from gym.batch import BatchSpec
from gym.errors import EnvironmentUnavailable, ModelRejected, ModelUnreachable, RolloutError, Stage
from gym.state.ledger.breakers import BreakerKey, BreakerKind, Breakers, Casualty, environment_key, policy_key
from gym.state.ledger.rollouts import Rollouts
from workers.process.breaker_cache import BreakerCache
from workers.process.committer import Committer
from workers.rollouts.runner import RunningRollout

MOST_REMEMBERED = 4096


class BreakerReports:
    """The reports of a worker, on its event loop; `keep_fresh` is its task. `on_release` gets breakers to retry."""

    def __init__(
        self, breakers: Breakers, rollouts: Rollouts, committer: Committer, *, on_release: Callable[[BreakerKey], None]
    ) -> None:
        self._cache = BreakerCache(breakers, committer, on_release=on_release)
        self._rollouts = rollouts
        self._committer = committer
        self._alive_at: dict[BreakerKey, float] = {}
        self._set_up_at: dict[BreakerKey, float] = {}
        self._policies: dict[str, BreakerKey] = {}  # by batch

    def holds(self, batch_id: str, spec: BatchSpec, environment: str) -> bool:
        """Return whether rollouts of this batch and environment are parked, as far as it is known here."""
        if not self._cache.any:
            return False
        keys = (self._policy(batch_id, spec), environment_key(environment))
        return any(self._cache.parked(key) is not None for key in keys)

    @property
    def any_open(self) -> bool:
        """Return whether any breaker is open."""
        return self._cache.any_open

    async def ended(
        self, running: RunningRollout, error: RolloutError | None, others: Iterable[RunningRollout]
    ) -> bool:
        """Report an attempt's end; return whether to hand it back unused, since its breaker is open or opens now."""
        key = self.blamed(running, error)
        self._note_life(running, error, key)
        handed_back = False
        if key is not None and error is not None:
            handed_back = await self.failed(key, running, error, others)
        if running.probe is not None and running.probe != key:
            await self._settle_probe(running, running.probe)
        return handed_back

    async def failed(
        self, key: BreakerKey, running: RunningRollout, error: RolloutError, others: Iterable[RunningRollout]
    ) -> bool:
        """Count a failure; return whether the breaker is open now. `others` run beside it and may have seen it work."""
        claim = running.claim
        who = Casualty(claim.batch_id, claim.member, claim.attempt, claim.token)
        seen = self._alive(key, error.stage, others)
        answer = await self._cache.failed(key, who, seen=seen, probe=running.probe == key, error=error)
        if answer.opened:
            owed = [
                self._rollouts.refund_call(each.batch_id, each.member, each.attempt, each.token)
                for each in answer.before
            ]
            await asyncio.gather(*map(self._committer.send, owed))
        return answer.open

    async def keep_fresh(self, running: Callable[[], Iterable[RunningRollout]]) -> None:
        """Read failures elsewhere and report signs of life here, until cancelled."""
        await self._cache.keep_fresh(
            lambda breaker: self._alive(breaker.key, Stage(breaker.stage), running()),
            busy=lambda: any(True for _ in running()),
        )

    async def probe_lost(self, key: BreakerKey) -> None:
        """Report that a probe arrived and was not run: another may be sent at once."""
        await self._cache.probe_lost(key)

    async def _settle_probe(self, running: RunningRollout, key: BreakerKey) -> None:
        known = self._cache.get(key)
        seen = None if known is None else self._alive(key, Stage(known.stage), ())
        await self._cache.settle_probe(key, alive=seen is not None and seen >= running.began)

    def _policy(self, batch_id: str, spec: BatchSpec) -> BreakerKey:
        key = self._policies.get(batch_id)
        if key is None:
            if len(self._policies) >= MOST_REMEMBERED:
                self._policies.clear()
            key = self._policies[batch_id] = policy_key(spec.policy)
        return key

    def blamed(self, running: RunningRollout, error: RolloutError | None) -> BreakerKey | None:
        """Return the breaker that an error counts for; a model server that answers, even with errors, is not away."""
        if isinstance(error, EnvironmentUnavailable):
            return environment_key(running.claim.environment)
        if isinstance(error, ModelUnreachable) and error.away:
            return self._policy(running.claim.batch_id, running.spec)
        return None

    def _note_life(self, running: RunningRollout, error: RolloutError | None, blamed: BreakerKey | None) -> None:
        episode = running.episode
        if episode is None or running.ready_at is None:
            return
        if len(self._alive_at) >= MOST_REMEMBERED:
            self._alive_at.clear()
        environment = environment_key(running.claim.environment)
        self._set_up_at[environment] = max(running.ready_at, self._set_up_at.get(environment, running.ready_at))
        if error is None:
            self._alive_at[environment] = time.monotonic()
        policy = self._policy(running.claim.batch_id, running.spec)
        seen = time.monotonic() if isinstance(error, ModelRejected) else episode.last_reply
        if policy != blamed and seen is not None:
            self._alive_at[policy] = max(seen, self._alive_at.get(policy, seen))

    def _alive(self, key: BreakerKey, stage: Stage, running: Iterable[RunningRollout]) -> float | None:
        """Return the time of its last sign of life here; for an environment that fails in `setup`, of a setup."""
        notes = (self._alive_at, self._set_up_at) if stage is Stage.SETUP else (self._alive_at,)
        seen = [note[key] for note in notes if key in note]
        for each in running:
            last_reply = each.episode.last_reply if each.episode is not None else None
            if key.kind is BreakerKind.POLICY:
                if last_reply is not None and self._policy(each.claim.batch_id, each.spec) == key:
                    seen.append(last_reply)
            elif stage is Stage.SETUP and each.ready_at and environment_key(each.claim.environment) == key:
                seen.append(each.ready_at)
        return max(seen, default=None)
