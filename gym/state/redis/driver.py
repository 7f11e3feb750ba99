"""The Redis driver for other packages: its errors, and blocking clients for threads and commands.

Only `gym.state` and `gym.relay` import `redis` itself, so a change of driver ends here.
"""

from __future__ import annotations

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import DataError, NoPermissionError, OutOfMemoryError, RedisError, ResponseError
from redis.retry import Retry

__all__ = [
    "DataError",
    "NoBackoff",
    "NoPermissionError",
    "OutOfMemoryError",
    "Redis",
    "RedisError",
    "ResponseError",
    "Retry",
]
