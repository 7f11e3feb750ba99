"""The worker's lease, renewed by a thread of its own, so that a busy event loop cannot lose it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import orjson

from gym.jsontypes import JsonObject
from gym.state.redis.driver import NoBackoff, Redis, RedisError, Retry
from gym.state.redis.keys import Keys
from gym.state.redis.store import insisting

ENTER_AGAIN_S = 0.25
_LOG = logging.getLogger(__name__)


class LeaseKeeper:
    """Registers the worker in Redis and renews its lease."""

    def __init__(self, url: str, keys: Keys, worker: str, *, ttl_s: float, describe: Callable[[], JsonObject]) -> None:
        self._redis = Redis.from_url(
            url, socket_timeout=ttl_s / 3, socket_connect_timeout=ttl_s / 3, retry=Retry(NoBackoff(), 0)
        )
        self._keys = keys
        self._worker = worker
        self._ttl_s = ttl_s
        self._describe = describe
        self._entered = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)

    def start(self) -> None:
        """Register the worker and wake the dispatcher, now or as soon as Redis can be reached."""
        self._enter()
        self._thread.start()

    def renew_now(self) -> None:
        """Renew the lease at once after a change, such as the start of a drain."""
        try:
            self._renew()
        except RedisError as error:
            _LOG.warning("lease not renewed: %s", error, extra={"action": "lease_failed"})

    def problem(self) -> str:
        """Return the thread's problem, empty if there is none; an absent Redis is not its fault."""
        started = self._thread.ident is not None
        return "the thread of the lease has ended" if started and not self._thread.is_alive() else ""

    def stop(self) -> None:
        """Strike the worker off; its remaining rollouts would be given to others at once."""
        self._stop.set()
        self._thread.join(self._ttl_s)
        try:
            self._redis.zrem(self._keys.workers, self._worker)
            self._redis.hdel(self._keys.worker_info, self._worker)
        except RedisError as error:
            _LOG.warning("lease not given back: %s", error, extra={"action": "lease_failed"})
        self._redis.close()

    def _run(self) -> None:
        while not self._entered and not self._stop.wait(ENTER_AGAIN_S):
            self._enter()
        while not self._stop.wait(self._ttl_s / 3):
            self.renew_now()

    def _enter(self) -> None:
        try:
            self._renew()
            self._redis.eval(*insisting(self._keys.wake, "LPUSH", "1"))
            self._redis.ltrim(self._keys.wake, 0, 0)
            self._entered = True
        except RedisError as error:
            _LOG.warning("not entered yet: %s", error, extra={"action": "lease_failed"})

    def _renew(self) -> None:
        seconds, micros = self._redis.time()
        ends = int(seconds) * 1000 + int(micros) // 1000 + int(self._ttl_s * 1000)
        pipeline = self._redis.pipeline(transaction=False)
        # a full Redis must not cost working processes their leases
        pipeline.eval(*insisting(self._keys.workers, "ZADD", ends, self._worker))
        pipeline.eval(*insisting(self._keys.worker_info, "HSET", self._worker, orjson.dumps(self._describe())))
        pipeline.execute()
