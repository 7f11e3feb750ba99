"""Authentication of the proxy's callers: API keys, and agents' keys for one attempt of one rollout.

Invariant: an agent's key is valid only while, according to Redis, a worker runs its attempt.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from api.keys import KeyRing, given_key
from gym.agents.outside.keys import PREFIX, AgentKeys, Grant, agent_secret
from gym.config import ApiKey
from gym.errors import Forbidden, NotFound, Unauthorized
from gym.ids import parse_rollout_id
from gym.model_client.routing.served_model import ServedModel, inline_model
from gym.policy import PolicySpec
from gym.state.batch_spec import spec_of
from gym.state.ledger.rollouts import Rollouts
from gym.state.redis.driver import RedisError
from gym.state.redis.store import Store

MOST_POLICIES = 256
LOOK_S = 1.0  # between checks that the attempt of a call in progress still runs


class Admission:
    """Check of keys. The farm's secret is read from Redis at the first agent's key."""

    def __init__(self, keys: Sequence[ApiKey], store: Store) -> None:
        self._ring = KeyRing(keys) if keys else None
        self._store = store
        self._rollouts = Rollouts(store)
        self._agents: AgentKeys | None = None
        self._inline: dict[str, ServedModel] = {}

    async def check(self, method: str, headers: Sequence[tuple[bytes, bytes]], rollout_id: str | None) -> Grant | None:
        """Return the grant of an agent's key, or None for any other caller.

        Raises Unauthorized, RedisError, and Forbidden if the key is for another rollout or its attempt is over.
        """
        key = (given_key(headers) or b"").decode("latin-1")
        if not key.startswith(PREFIX):
            if self._ring is not None:
                self._ring.check(method, headers)
            return None
        if self._agents is None:
            self._agents = AgentKeys(await agent_secret(self._store))
        grant = self._agents.read(key)
        if grant is None:
            self._agents = None  # a Redis that lost its data has another secret now
            raise Unauthorized("unauthorized", "this agent's key is not one of this farm, or its time is over")
        if rollout_id != grant.rollout_id:
            raise Forbidden(
                "forbidden",
                f"this key is for the rollout {grant.rollout_id}: call below /rollouts/{grant.rollout_id}/v1",
                {"rollout_id": grant.rollout_id},
            )
        await self.require_running(grant)
        return grant

    async def require_running(self, grant: Grant) -> None:
        """Raise Forbidden unless a worker runs the attempt of a grant. Raises RedisError."""
        rollout = parse_rollout_id(grant.rollout_id)
        if rollout is None or not await self._rollouts.running(rollout, grant.attempt):
            raise Forbidden(
                "attempt_over",
                f"attempt {grant.attempt} of rollout {grant.rollout_id} is over, and this key with it: end",
                {"rollout_id": grant.rollout_id, "attempt": grant.attempt},
            )

    async def until_over(self, grant: Grant) -> Forbidden:
        """Wait until the attempt of a grant is over; return the error to raise then."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self.require_running(grant)
            except Forbidden as over:
                return over
            except RedisError:
                continue  # the worker keeps running without Redis

    async def inline_policy(self, grant: Grant) -> ServedModel:
        """Return the inline policy of the batch of a granted rollout. Raises NotFound."""
        rollout = parse_rollout_id(grant.rollout_id)
        batch_id = rollout.batch_id if rollout is not None else ""
        record = self._inline.get(batch_id)
        if record is None:
            spec = await spec_of(self._store, batch_id)
            policy = spec.policy if spec is not None else None
            if not isinstance(policy, PolicySpec):
                raise NotFound("policy_not_found", f"the batch of rollout {grant.rollout_id} is gone")
            record = inline_model(policy)
            if len(self._inline) >= MOST_POLICIES:
                self._inline.clear()
            self._inline[batch_id] = record
        return record
