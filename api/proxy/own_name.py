"""Loop detection: the name by which a farm's proxies recognise their own calls."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import suppress

from gym.agents.outside.keys import agent_secret
from gym.errors import LoopDetected
from gym.model_client.http import hops
from gym.state.redis.driver import RedisError
from gym.state.redis.store import Store

AGAIN_S = 1.0


class OwnName:
    """Name of the farm, shared by all its proxies; until Redis has been reached, the name of this process."""

    def __init__(self, store: Store, process: str) -> None:
        self._store = store
        self._process = process
        self._farm: str | None = None

    async def learn(self) -> None:
        """Read the farm's name from Redis. Raises RedisError."""
        secret = await agent_secret(self._store)
        self._farm = hashlib.sha256(b"hops:" + secret).hexdigest()[:16]

    async def keep_learning(self) -> None:
        """Retry until the name is known."""
        while self._farm is None:
            await asyncio.sleep(AGAIN_S)
            with suppress(RedisError):
                await self.learn()

    def sent_on(self, header: str | None) -> str:
        """Return the hops header for the call to the model server. Raises LoopDetected."""
        farm = self._farm
        own = frozenset({self._process} if farm is None else {self._process, farm})
        if hops.is_loop(header, own):
            raise LoopDetected(
                "policy_loops",
                "the policy is served at this farm's own proxy, or leads back to it: give the policy the address of "
                "its model server as base_urls",
                {"hops": hops.passed(header)[: hops.MOST]},
            )
        return hops.with_own(header, farm or self._process)
