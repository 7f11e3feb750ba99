"""The secret that signs the keys of agents: generated once, kept in Redis, and shared by all processes."""

from __future__ import annotations

import secrets

from gym.state.redis.store import Store


async def agent_secret(store: Store) -> bytes:
    """The farm's secret. Raises RedisError."""
    await store.redis.set(store.keys.agent_secret, secrets.token_bytes(32), nx=True)
    found: bytes = await store.redis.get(store.keys.agent_secret)
    return found
