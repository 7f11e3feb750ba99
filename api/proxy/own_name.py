"""The name under which a farm's proxies know each other's calls, so that none comes back."""

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
    """The farm's name, the same in all its proxies; until Redis has been reached, this process's alone."""

    def __init__(self, store: Store, process: str) -> None:
        self._store = store
        self._process = process
        self._farm: str | None = None

    async def learn(self) -> None:
        """Ask for the farm's name. Raises RedisError."""
        secret = await agent_secret(self._store)
        self._farm = hashlib.sha256(b"hops:" + secret).hexdigest()[:16]

    async def keep_learning(self) -> None:
        """Ask until it is known."""
        while self._farm is None:
            await asyncio.sleep(AGAIN_S)
            with suppress(RedisError):
                await self.learn()

    def sent_on(self, header: str | None) -> str:
        """Return the header of hops for the call to the model server. Raises LoopDetected."""
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
