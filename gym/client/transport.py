"""Carries flows out over HTTP, once for asyncio and once for threads. Nothing here knows a call of the API."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from typing import TypeVar
from urllib.parse import urlsplit

import httpx

from gym.client.exchange import Disconnected, Flow, Request, Response, RetryPolicy, with_retries
from gym.errors import Invalid

T = TypeVar("T")

CONNECT_TIMEOUT_S = 5.0


def checked_url(url: str) -> str:
    """An address that this client can speak to, without a trailing slash. Raises Invalid."""
    parts = urlsplit(url)
    if parts.scheme in ("redis", "rediss", "unix"):
        raise Invalid(
            "unsupported_url",
            f"a farm cannot be reached through Redis yet; give the http:// address of its API instead of {parts.scheme}://…",
            {"field": "url"},
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Invalid(
            "unsupported_url", f"{url!r} is not the address of a farm, such as http://127.0.0.1:8700", {"field": "url"}
        )
    return url.rstrip("/")


class AsyncTransport:
    """Carries flows out on the running event loop; any number at a time."""

    def __init__(self, url: str, *, api_key: str | None, timeout_s: float, policy: RetryPolicy) -> None:
        self._client = httpx.AsyncClient(base_url=checked_url(url), headers=_headers(api_key))
        self._timeout_s = timeout_s
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
                request = attempts.send(await self._send(request))
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            attempts.close()

    async def _send(self, request: Request) -> Response | Disconnected:
        content = _pieces(request.body) if len(request.body) > 1 else b"".join(request.body)
        try:
            return _response(
                await self._client.request(
                    request.method,
                    request.path,
                    params=dict(request.query),
                    content=content,
                    headers=_content_headers(request),
                    timeout=_timeout(self._timeout_s, request),
                )
            )
        except httpx.RequestError as error:
            return _disconnected(error, self._client.base_url)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


class SyncTransport:
    """Carries flows out in the calling thread."""

    def __init__(self, url: str, *, api_key: str | None, timeout_s: float, policy: RetryPolicy) -> None:
        self._client = httpx.Client(base_url=checked_url(url), headers=_headers(api_key))
        self._timeout_s = timeout_s
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
                request = attempts.send(self._send(request))
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            attempts.close()

    def _send(self, request: Request) -> Response | Disconnected:
        content = iter(request.body) if len(request.body) > 1 else b"".join(request.body)
        try:
            return _response(
                self._client.request(
                    request.method,
                    request.path,
                    params=dict(request.query),
                    content=content,
                    headers=_content_headers(request),
                    timeout=_timeout(self._timeout_s, request),
                )
            )
        except httpx.RequestError as error:
            return _disconnected(error, self._client.base_url)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def _headers(api_key: str | None) -> dict[str, str]:
    return {"accept": "application/json"} | ({"authorization": f"Bearer {api_key}"} if api_key else {})


def _content_headers(request: Request) -> dict[str, str]:
    return {"content-type": request.content_type} if request.body else {}


def _timeout(timeout_s: float, request: Request) -> httpx.Timeout:
    """Bounds for connecting and for each silence; a long poll may be silent for as long as it was asked to wait."""
    return httpx.Timeout(timeout_s, connect=min(CONNECT_TIMEOUT_S, timeout_s), read=timeout_s + request.wait_s)


def _response(answer: httpx.Response) -> Response:
    return Response(status=answer.status_code, body=answer.content, retry_after=answer.headers.get("retry-after"))


def _disconnected(error: httpx.RequestError, base_url: httpx.URL) -> Disconnected:
    never_sent = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
    return Disconnected(reason=f"{base_url}: {str(error) or type(error).__name__}", sent=not never_sent)


async def _pieces(body: Sequence[bytes]) -> AsyncIterator[bytes]:
    for piece in body:
        yield piece
