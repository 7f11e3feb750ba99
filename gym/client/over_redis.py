"""Transports over a Redis (`gym.relay`), one for asyncio and one for threads.

Each call uses a relay connection, which is kept for the next call as HTTP connections are; each has its own Redis
connection. This module does not retry: a failure is reported as a missing response, and `exchange` decides on retries.
"""

from __future__ import annotations

import asyncio
import importlib.util
import threading
import time
from typing import Any
from urllib.parse import urlencode

from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError
from redis.retry import Retry

from gym.client.exchange import Disconnected, Request, Response
from gym.relay.address import RedisAddress, read_address
from gym.relay.caller import (
    Action,
    Event,
    LostAnswer,
    Publish,
    Receive,
    RedisFailure,
    RelayAnswer,
    RelayConnection,
    RelayRequest,
    Subscribe,
)

CONNECT_TIMEOUT_S = 5.0
COMMAND_TIMEOUT_S = 15.0
MAX_LINES = 100
MAX_IDLE_S = 20.0
"""A connection that was idle for longer may have been cut unnoticed by a firewall, and is not used again."""


class AsyncRedisLines:
    """Transport on the running event loop; up to `MAX_LINES` requests at the same time, further ones wait."""

    def __init__(self, url: str, *, timeout_s: float) -> None:
        self._address = read_address(url)
        # `_do` bounds each command: with a socket timeout redis-py sends inside `asyncio.wait_for`, which before Python
        # 3.12 may swallow a cancellation
        options = _options(timeout_s) | {"retry": AsyncRetry(NoBackoff(), 0), "socket_timeout": None}
        self._redis: Any = AsyncRedis.from_url(self._address.url, **options)
        self._timeout_s = timeout_s
        self._room = asyncio.Semaphore(MAX_LINES)
        self._idle: list[tuple[float, _AsyncLine]] = []

    async def send(self, request: Request) -> Response | Disconnected:
        """Send a request; return the response, or the reason why there is none."""
        return _said(await self.ask(_ask(request), silence_s=self._timeout_s + request.wait_s))

    async def ask(self, ask: RelayRequest, *, silence_s: float) -> RelayAnswer | LostAnswer:
        """Send any call of the API; otherwise as `send`."""
        async with self._room:
            line = await self._take()
            try:
                return await line.exchange(ask, silence_s)
            finally:
                if line.line.usable:
                    self._idle.append((time.monotonic(), line))
                else:
                    await line.close()

    async def _take(self) -> _AsyncLine:
        while self._idle:
            since, line = self._idle.pop()
            if time.monotonic() - since <= MAX_IDLE_S:
                return line
            await line.close()
        return _AsyncLine(self._redis, self._address)

    async def close(self) -> None:
        """Close the connections."""
        while self._idle:
            await self._idle.pop()[1].close()
        await self._redis.aclose()


class _AsyncLine:
    def __init__(self, redis: Any, address: RedisAddress) -> None:
        self.line = RelayConnection(address.channels, address.name)
        self._redis = redis
        self._address = address
        self._pubsub = redis.pubsub()

    async def exchange(self, ask: RelayRequest, silence_s: float) -> RelayAnswer | LostAnswer:
        steps = self.line.exchange(ask, silence_s=silence_s)
        try:
            action = next(steps)
            while True:
                action = steps.send(await self._do(action))
        except StopIteration as end:
            outcome: RelayAnswer | LostAnswer = end.value
            return outcome
        finally:
            steps.close()

    async def _do(self, action: Action) -> Event:
        try:
            async with asyncio.timeout(COMMAND_TIMEOUT_S):
                match action:
                    case Publish(channel, data):
                        return int(await self._redis.publish(channel, data))
                    case Receive(timeout_s):
                        return _message(await self._pubsub.get_message(timeout=timeout_s))
                    case Subscribe(channel):
                        await self._pubsub.subscribe(channel)
                        return _confirmed(await self._pubsub.get_message(timeout=COMMAND_TIMEOUT_S), self._address)
        except (RedisError, TimeoutError) as error:
            return _failed(error, self._address)

    async def close(self) -> None:
        await self._pubsub.aclose()


class SyncRedisLines:
    """Transport in the calling thread; any number of threads, up to `MAX_LINES` requests at the same time."""

    def __init__(self, url: str, *, timeout_s: float) -> None:
        self._address = read_address(url)
        self._redis: Any = Redis.from_url(self._address.url, **_options(timeout_s), retry=Retry(NoBackoff(), 0))
        self._timeout_s = timeout_s
        self._room = threading.Semaphore(MAX_LINES)
        self._lock = threading.Lock()
        self._idle: list[tuple[float, _SyncLine]] = []

    def send(self, request: Request) -> Response | Disconnected:
        """Send a request; return the response, or the reason why there is none."""
        return _said(self.ask(_ask(request), silence_s=self._timeout_s + request.wait_s))

    def ask(self, ask: RelayRequest, *, silence_s: float) -> RelayAnswer | LostAnswer:
        """Send any call of the API; otherwise as `send`."""
        with self._room:
            line = self._take()
            try:
                return line.exchange(ask, silence_s)
            finally:
                if line.line.usable:
                    with self._lock:
                        self._idle.append((time.monotonic(), line))
                else:
                    line.close()

    def _take(self) -> _SyncLine:
        with self._lock:
            while self._idle:
                since, line = self._idle.pop()
                if time.monotonic() - since <= MAX_IDLE_S:
                    return line
                line.close()
        return _SyncLine(self._redis, self._address)

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            while self._idle:
                self._idle.pop()[1].close()
        self._redis.close()


class _SyncLine:
    def __init__(self, redis: Any, address: RedisAddress) -> None:
        self.line = RelayConnection(address.channels, address.name)
        self._redis = redis
        self._address = address
        self._pubsub = redis.pubsub()

    def exchange(self, ask: RelayRequest, silence_s: float) -> RelayAnswer | LostAnswer:
        steps = self.line.exchange(ask, silence_s=silence_s)
        try:
            action = next(steps)
            while True:
                action = steps.send(self._do(action))
        except StopIteration as end:
            outcome: RelayAnswer | LostAnswer = end.value
            return outcome
        finally:
            steps.close()

    def _do(self, action: Action) -> Event:
        try:
            match action:
                case Publish(channel, data):
                    return int(self._redis.publish(channel, data))
                case Receive(timeout_s):
                    return _message(self._pubsub.get_message(timeout=timeout_s))
                case Subscribe(channel):
                    self._pubsub.subscribe(channel)
                    return _confirmed(self._pubsub.get_message(timeout=COMMAND_TIMEOUT_S), self._address)
        except RedisError as error:
            return _failed(error, self._address)

    def close(self) -> None:
        self._pubsub.close()


def _options(timeout_s: float) -> dict[str, Any]:
    """Options of a Redis connection: bounds, and no command at connecting that a client's ACL forbids."""
    nameless: dict[str, Any] = {"lib_name": None, "lib_version": None}
    if importlib.util.find_spec("redis.driver_info") is not None:
        nameless = {"driver_info": None}
    return {
        "protocol": 2,
        "socket_timeout": min(timeout_s, COMMAND_TIMEOUT_S),
        "socket_connect_timeout": min(timeout_s, CONNECT_TIMEOUT_S),
        "max_connections": 2 * MAX_LINES,
        "health_check_interval": 0,
        **nameless,
    }


def _ask(request: Request) -> RelayRequest:
    headers = {"accept": "application/json"} | ({"content-type": request.content_type} if request.body else {})
    headers |= {"idempotency-key": request.key} if request.key is not None else {}
    return RelayRequest(
        method=request.method,
        path=request.path,
        query=urlencode(request.query),
        headers=headers,
        body=request.body,
    )


def _said(outcome: RelayAnswer | LostAnswer) -> Response | Disconnected:
    if isinstance(outcome, LostAnswer):
        return Disconnected(reason=outcome.reason, sent=outcome.sent)
    return Response(status=outcome.status, body=outcome.body, retry_after=outcome.headers.get("retry-after"))


def _message(message: dict[str, Any] | None) -> bytes | None:
    if message is None or message["type"] != "message":
        return None
    data: bytes = message["data"]
    return data


def _confirmed(message: dict[str, Any] | None, address: RedisAddress) -> Event:
    return True if message is not None else RedisFailure(f"{address.shown}: the subscription was not confirmed in time")


def _failed(error: Exception, address: RedisAddress) -> RedisFailure:
    status = None
    if isinstance(error, NoPermissionError):
        status = 403
    elif isinstance(error, AuthenticationError):
        status = 401
    return RedisFailure(f"{address.shown}: {str(error) or type(error).__name__}", status)
