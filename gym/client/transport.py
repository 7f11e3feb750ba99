"""Drivers of flows, one for asyncio and one for threads, over the transport of the farm's address.

This module knows neither the calls of the API nor how a request travels: see `over_http` and `over_redis`.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import Protocol, TypeVar
from urllib.parse import urlsplit

from gym.client.exchange import Disconnected, Flow, Request, Response, RetryPolicy, with_retries
from gym.client.over_http import AsyncHttp, SyncHttp
from gym.errors import Invalid

T = TypeVar("T")


class AsyncCarrier(Protocol):
    """Transport of a request to the farm and its response back."""

    async def send(self, request: Request) -> Response | Disconnected:
        """Send a request; return the response, or the reason why there is none."""

    async def close(self) -> None:
        """Close the connections."""


class SyncCarrier(Protocol):
    """Blocking counterpart of AsyncCarrier."""

    def send(self, request: Request) -> Response | Disconnected:
        """Send a request; return the response, or the reason why there is none."""

    def close(self) -> None:
        """Close the connections."""


def checked_url(url: str) -> str:
    """Return an address that this client supports, without a trailing slash. Raises Invalid."""
    parts = urlsplit(url)
    if _over_redis(url) and (parts.hostname or parts.scheme == "unix"):
        return url
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Invalid(
            "unsupported_url",
            f"{url.rpartition('@')[2]!r} is not the address of a farm, such as http://127.0.0.1:8700 or of its Redis, "
            "such as redis://NAME:PASSWORD@127.0.0.1:6379/0",
            {"field": "url"},
        )
    return url.rstrip("/")


class AsyncTransport:
    """Driver of flows on the running event loop; any number at the same time."""

    def __init__(self, url: str, *, api_key: str | None, timeout_s: float, policy: RetryPolicy) -> None:
        self._carrier: AsyncCarrier
        url = checked_url(url)
        if _over_redis(url):
            from gym.client.over_redis import AsyncRedisLines

            self._carrier = AsyncRedisLines(url, timeout_s=timeout_s)
        else:
            self._carrier = AsyncHttp(url, api_key=api_key, timeout_s=timeout_s)
        self._policy = policy
        self._chance = random.Random()

    async def run(self, flow: Flow[T]) -> T:
        """Drive a flow to its end."""
        attempts = with_retries(flow, self._policy, self._chance)
        try:
            request = next(attempts)
            while True:
                if request.after_s > 0:
                    await asyncio.sleep(request.after_s)
                request = attempts.send(await self._carrier.send(request))
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            attempts.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._carrier.close()


class SyncTransport:
    """Driver of flows in the calling thread."""

    def __init__(self, url: str, *, api_key: str | None, timeout_s: float, policy: RetryPolicy) -> None:
        self._carrier: SyncCarrier
        url = checked_url(url)
        if _over_redis(url):
            from gym.client.over_redis import SyncRedisLines

            self._carrier = SyncRedisLines(url, timeout_s=timeout_s)
        else:
            self._carrier = SyncHttp(url, api_key=api_key, timeout_s=timeout_s)
        self._policy = policy
        self._chance = random.Random()

    def run(self, flow: Flow[T]) -> T:
        """Drive a flow to its end."""
        attempts = with_retries(flow, self._policy, self._chance)
        try:
            request = next(attempts)
            while True:
                if request.after_s > 0:
                    time.sleep(request.after_s)
                request = attempts.send(self._carrier.send(request))
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            attempts.close()

    def close(self) -> None:
        """Close the connections."""
        self._carrier.close()


def _over_redis(url: str) -> bool:
    """Return whether an address is a Redis URL; only then is redis-py needed."""
    return urlsplit(url).scheme in ("redis", "rediss", "unix")
