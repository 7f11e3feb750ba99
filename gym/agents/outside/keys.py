"""Keys for the agents that the farm starts or calls, valid at the model proxy for one attempt of one rollout.

A key is signed and holds its own grant, so every proxy process can read it without storage. It carries the attempt, the
policy and the most calls: an agent needs no knowledge of the farm, and cannot choose them.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
import time
from dataclasses import asdict, dataclass

import orjson

from gym.state.redis.store import Store

PREFIX = "farm-agent."
_MAC_BYTES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """Grant of a key. `policy` is None if the batch brought its own policy."""

    rollout_id: str
    attempt: int
    policy: str | None
    max_calls: int
    until: float  # time.time()


class AgentKeys:
    """Issuer and reader of keys; `secret` is the farm's, the same in every process."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def issue(self, grant: Grant) -> str:
        """Return the key for a grant."""
        said = base64.urlsafe_b64encode(orjson.dumps(asdict(grant))).rstrip(b"=").decode()
        return f"{PREFIX}{said}.{self._sign(said)}"

    def read(self, key: str, *, now: float | None = None) -> Grant | None:
        """Return the grant of a key; None for an expired key, or one that was not issued here."""
        said, _, signature = key.removeprefix(PREFIX).rpartition(".")
        if not key.startswith(PREFIX) or not hmac.compare_digest(signature.encode(), self._sign(said).encode()):
            return None
        try:
            grant = Grant(**orjson.loads(base64.urlsafe_b64decode(said + "=" * (-len(said) % 4))))
        except (binascii.Error, orjson.JSONDecodeError, TypeError):
            return None
        return grant if (time.time() if now is None else now) < grant.until else None

    def _sign(self, said: str) -> str:
        return hmac.new(self._secret, said.encode(), hashlib.sha256).hexdigest()[: 2 * _MAC_BYTES]


async def agent_secret(store: Store) -> bytes:
    """Return the secret that signs the keys of agents, made once and kept in Redis. Raises RedisError."""
    await store.redis.set(store.keys.agent_secret, secrets.token_bytes(32), nx=True)
    found: bytes = await store.redis.get(store.keys.agent_secret)
    return found
