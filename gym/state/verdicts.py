"""Cache of verdicts in Redis, so that all judge workers ask a question once."""

from __future__ import annotations

import logging

import orjson
from redis.exceptions import RedisError

from gym.judges.base import Verdict
from gym.state.redis.store import Store
from gym.state.redis.unreadable import read_object, read_or_none

_LOG = logging.getLogger(__name__)


class StoredVerdicts:
    """A `gym.judges.cache.VerdictStore`; a verdict that cannot be read or stored is requested again."""

    def __init__(self, store: Store, *, keep_s: float) -> None:
        self._store = store
        self._keep_ms = int(keep_s * 1000)

    async def get(self, judge: str, version: str, digest: str) -> Verdict | None:
        """Return the stored verdict, if any."""
        try:
            text = await self._store.redis.get(self._store.keys.verdict(judge, version, digest))
        except RedisError as error:
            _LOG.warning("verdicts not read: %s", error, extra={"action": "verdict_cache"})
            return None
        if text is None:
            return None

        def read() -> Verdict:
            stored = read_object(text)
            return Verdict(
                judge=judge,
                version=stored["version"],
                score=float(stored["score"]),
                votes=tuple(stored["votes"]),
                text=stored["text"],
            )

        return read_or_none("verdict", f"{judge} {digest}", read)

    async def put(self, judge: str, version: str, digest: str, verdict: Verdict) -> None:
        """Store a verdict for a while."""
        key = self._store.keys.verdict(judge, version, digest)
        try:
            await self._store.redis.set(key, orjson.dumps(verdict.as_json()), px=self._keep_ms)
        except RedisError as error:
            _LOG.warning("verdict not kept: %s", error, extra={"action": "verdict_cache"})
