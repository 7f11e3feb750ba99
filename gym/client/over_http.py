"""Transports over HTTP, one for asyncio and one for threads."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import httpx

from gym.client.exchange import Disconnected, Request, Response

CONNECT_TIMEOUT_S = 5.0


class AsyncHttp:
    """Transport on the running event loop; any number of requests at the same time."""

    def __init__(self, url: str, *, api_key: str | None, timeout_s: float) -> None:
        self._client = httpx.AsyncClient(base_url=url, headers=_headers(api_key))
        self._timeout_s = timeout_s

    async def send(self, request: Request) -> Response | Disconnected:
        """Send a request; return the response, or the reason why there is none."""
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


class SyncHttp:
    """Transport in the calling thread."""

    def __init__(self, url: str, *, api_key: str | None, timeout_s: float) -> None:
        self._client = httpx.Client(base_url=url, headers=_headers(api_key))
        self._timeout_s = timeout_s

    def send(self, request: Request) -> Response | Disconnected:
        """Send a request; return the response, or the reason why there is none."""
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
    headers = {"content-type": request.content_type} if request.body else {}
    return headers | ({"idempotency-key": request.key} if request.key is not None else {})


def _timeout(timeout_s: float, request: Request) -> httpx.Timeout:
    """Bounds for connecting and for each silence; a long poll may be silent for the requested time."""
    return httpx.Timeout(timeout_s, connect=min(CONNECT_TIMEOUT_S, timeout_s), read=timeout_s + request.wait_s)


def _response(answer: httpx.Response) -> Response:
    return Response(status=answer.status_code, body=answer.content, retry_after=answer.headers.get("retry-after"))


def _disconnected(error: httpx.RequestError, base_url: httpx.URL) -> Disconnected:
    never_sent = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
    return Disconnected(reason=f"{base_url}: {str(error) or type(error).__name__}", sent=not never_sent)


async def _pieces(body: Sequence[bytes]) -> AsyncIterator[bytes]:
    for piece in body:
        yield piece
