"""Keys for the agents that the farm starts or calls: good at the model proxy, for one attempt of one rollout.

A key says what it is for and is signed, so every proxy process can read it and nothing is stored. With it go the
attempt, the policy and the most calls: an agent that knows nothing of the farm need not be told, and cannot choose.
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
    """What a key is for. `policy` is None where the batch brought its policy along."""

    rollout_id: str
    attempt: int
    policy: str | None
    max_calls: int
    until: float  # time.time()


class AgentKeys:
    """Makes and reads keys; `secret` is the farm's own, the same in every process."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def issue(self, grant: Grant) -> str:
        """The key for a grant."""
        said = base64.urlsafe_b64encode(orjson.dumps(asdict(grant))).rstrip(b"=").decode()
        return f"{PREFIX}{said}.{self._sign(said)}"

    def read(self, key: str, *, now: float | None = None) -> Grant | None:
        """What a key grants; None for one that was not issued here, or is over."""
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
