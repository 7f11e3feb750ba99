"""From a job's ids to claims: the batch's options, the policy, and the claim itself, asked for until Redis answers.

Invariant: a claim that Redis has made is never lost here, since it is asked for again and then answered again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence

from gym.batch import BatchSpec
from gym.state.ledger.rollouts import Claim, Rollouts
from gym.state.policies import PolicyCache
from gym.state.redis.driver import RedisError
from gym.state.redis.store import Store, will_pass
from workers.process.specs import AGAIN_S, Specs

_LOG = logging.getLogger(__name__)


class Claims:
    """One per worker; `draining` says that nothing is to be waited for any more."""

    def __init__(self, store: Store, policies: PolicyCache, worker: str, *, draining: Callable[[], bool]) -> None:
        self._store = store
        self._rollouts = Rollouts(store)
        self._policies = policies
        self._worker = worker
        self._draining = draining
        self._specs = Specs(store, draining=draining)
        self._claiming: set[tuple[str, str]] = set()

    @property
    def under_way(self) -> set[tuple[str, str]]:
        """The (batch, member) that are being claimed: Redis may say already that they are here."""
        return self._claiming

    async def spec(self, batch_id: str) -> BatchSpec | None:
        """A batch's options, which never change; `None` where the batch is gone, or a drain began."""
        spec = await self._specs.get(batch_id)
        if spec is None:
            return None
        if isinstance(spec.policy, str) and self._policies.get(spec.policy) is None:
            await self._look_for_policies()
        return spec

    async def _look_for_policies(self) -> None:
        """A policy that is not known here may have been registered a moment ago."""
        try:
            await self._policies.refresh()
        except RedisError as error:
            _LOG.warning("policies not refreshed: %s", error, extra={"action": "policies_stale"})

    async def claim(self, batch_id: str, wanted: Sequence[tuple[str, int]], here: Collection[str]) -> list[Claim]:
        """Claim (member, attempt), but for the members that are `here` already: a job that came twice is run once.

        What is refused, as by a full Redis, is sent again by the dispatcher. Whoever asks starts them without waiting
        for anything.
        """
        fresh = [each for each in wanted if each[0] not in here and (batch_id, each[0]) not in self._claiming]
        members = {(batch_id, member) for member, _ in fresh}
        self._claiming |= members
        try:
            while fresh:
                try:
                    return await self._rollouts.claim(batch_id, self._worker, fresh)
                except RedisError as error:
                    _LOG.warning("slice of %s not claimed: %s", batch_id, error, extra={"action": "claim_failed"})
                    if self._draining() or not will_pass(error):
                        return []
                await asyncio.sleep(AGAIN_S)
            return []
        finally:
            self._claiming -= members

    async def bounce(self, batch_id: str, wanted: Sequence[tuple[str, int]]) -> None:
        """A draining worker starts nothing; what it cannot give back is found when it is overdue."""
        try:
            await self._rollouts.bounce(batch_id, wanted)
        except RedisError as error:
            _LOG.warning("slice of %s not given back: %s", batch_id, error, extra={"action": "bounce_failed"})
