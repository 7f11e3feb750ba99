"""Check that a full Redis refuses writes instead of dropping keys.

Every process that needs Redis checks at start; `farm doctor` checks too. A server whose settings cannot be read is
accepted with a warning.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from urllib.parse import urlsplit

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, RedisError, ResponseError
from redis.retry import Retry

from gym.errors import SettingsError
from gym.state.redis.format import require_format

NEEDED = "noeviction"
ASK_AGAIN_S = 1.0
_TIMEOUT_S = 3.0
_LOG = logging.getLogger(__name__)


def eviction_policy(redis: Redis) -> str | None:
    """Return the server's `maxmemory-policy`, `None` if it cannot be read.

    Raises redis-py's errors if the server is away.
    """
    try:
        found = redis.info("memory").get("maxmemory_policy")
        if found is None:
            found = redis.config_get("maxmemory-policy").get("maxmemory-policy")
    except BusyLoadingError:
        raise
    except ResponseError:  # managed servers and ACLs refuse these commands
        return None
    return None if found is None else str(found)


def explain(policy: str) -> str:
    """Return the message about a policy that cannot be used, with the remedy."""
    return (
        f"maxmemory-policy is {policy}: a full Redis would silently drop rollouts and results. "
        "Set `maxmemory-policy noeviction` (CONFIG SET, redis.conf, or your provider's console); "
        "a full Redis then refuses submissions until there is room again"
    )


def require_noeviction(url: str) -> bool:
    """Return whether the server at `url` answered. Raises SettingsError if it would drop keys."""
    redis = Redis.from_url(
        url,
        socket_timeout=_TIMEOUT_S,
        socket_connect_timeout=_TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
        decode_responses=True,
    )
    try:
        policy = eviction_policy(redis)
    except RedisError:
        return False
    finally:
        redis.close()
    if policy is None:
        _LOG.warning(
            "Redis does not say its maxmemory-policy; it must be noeviction", extra={"action": "redis_unasked"}
        )
    elif policy != NEEDED:
        raise SettingsError(f"the Redis at {urlsplit(url).hostname or 'its socket'} cannot be used: {explain(policy)}")
    return True


def _require_usable(url: str, prefix: str) -> bool:
    """Return whether the server answered. Raises SettingsError if it, or its data, cannot be used."""
    return require_noeviction(url) and require_format(url, prefix)


async def watch_for_eviction(url: str, prefix: str) -> None:
    """Check until Redis answers, for a process that starts without it; end the process by SIGTERM on failure."""
    while True:
        try:
            if await asyncio.to_thread(_require_usable, url, prefix):
                return
        except SettingsError as error:
            _LOG.critical("%s", error, extra={"action": "redis_refused"})
            os.kill(os.getpid(), signal.SIGTERM)
            return
        await asyncio.sleep(ASK_AGAIN_S)
