"""Settings of Redis and of the circuit breakers: the sections `redis` and `breakers`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from gym.fields.masked import Address
from gym.limits import Seconds
from gym.section import Section


class RedisSettings(Section):
    """The Redis server. Without a URL, `farm up` starts one in the data directory."""

    url: Address | None = Field(default=None, repr=False)
    broker_url: Address | None = Field(default=None, repr=False, description="Celery's; left out, the next database")
    prefix: str = Field(default="farm", pattern=r"^[a-z0-9_.-]{1,32}$")
    timeout_s: Seconds = 10.0
    clients: bool = Field(default=True, description="whether api processes answer clients that come through Redis")


class BreakerSettings(Section):
    """Circuit breakers: when rollouts of a failing policy, environment or judge are parked, and when one is probed."""

    failures: Annotated[
        int, Field(ge=1, le=1000, description="infrastructure failures in a row after which rollouts are parked")
    ] = 3
    probe_after_s: Annotated[
        float, Field(gt=0, le=3600, description="until one rollout is let through; doubled after each that fails")
    ] = 5.0
    max_probe_after_s: Annotated[float, Field(gt=0, le=24 * 3600)] = 60.0
