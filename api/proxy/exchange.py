"""HTTP request over ASGI: reads the body, sends the answer, and watches for a client disconnect.

Invariant: after the body has been read, a disconnect cancels the work at once, unless the answer is complete.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
from starlette.types import Receive, Scope, Send

from gym.errors import Malformed, RequestTimedOut, TooLarge, UnsupportedMedia
from gym.jsontypes import JsonObject
from gym.plain import exact_json, json_bounds

_STREAM_HEADERS = [
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


BODY_S = 120.0
BODY_STALL_S = 20.0
MOST_DEPTH = 240  # levels that every writer of JSON on the way takes


class ClientLeft(Exception):
    """Client disconnected before the answer was sent."""


class AsgiExchange:
    """HTTP request and its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._headers: list[tuple[bytes, bytes]] = scope["headers"]
        self._receive = receive
        self._send = send
        self.started = False
        self.stream_type = b"text/event-stream; charset=utf-8"
        self._ended = False

    def header(self, name: bytes) -> str | None:
        """Return a header by its lower-case name."""
        for known, value in self._headers:
            if known == name:
                return value.decode("latin-1").strip()
        return None

    async def json(self, max_bytes: int) -> JsonObject:
        """Read the body as a JSON object. Raises Malformed, TooLarge, UnsupportedMedia, RequestTimedOut, ClientLeft."""
        coding = (self.header(b"content-encoding") or "identity").lower()
        if coding != "identity":
            raise UnsupportedMedia("unsupported_encoding", f"content-encoding is {coding[:100]}; send the body plain")
        declared = self.header(b"content-length") or ""
        if declared.isdecimal() and int(declared[:20]) > max_bytes:
            raise _too_large(max_bytes)
        data = await self._body(max_bytes)
        try:
            body: Any = json_bounds.loads(data)
        except json_bounds.TooManyContainers as error:
            raise TooLarge("too_many_values", f"the body cannot be taken: {error}") from None
        except orjson.JSONDecodeError as error:
            raise Malformed("malformed_json", f"the body is no JSON: {error}") from error
        if data.count(b"{") + data.count(b"[") > MOST_DEPTH and exact_json.is_deeper(body, MOST_DEPTH):
            raise Malformed("malformed_json", f"the body is nested deeper than {MOST_DEPTH} levels; send it flatter")
        if not isinstance(body, dict):
            raise Malformed("malformed_json", "the body is JSON but no object")
        return body

    async def _body(self, max_bytes: int) -> bytearray:
        data = bytearray()
        clock = asyncio.get_running_loop().time
        ends_at = clock() + BODY_S
        try:
            async with asyncio.timeout(BODY_STALL_S) as limit:
                while True:
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        raise ClientLeft
                    data += message.get("body", b"")
                    if len(data) > max_bytes:
                        raise _too_large(max_bytes)
                    if not message.get("more_body", False):
                        return data
                    limit.reschedule(min(ends_at, clock() + BODY_STALL_S))
        except TimeoutError:
            stalled = f"nothing of the body came for {BODY_STALL_S:g} s"
            raise _late(f"the body was not complete after {BODY_S:g} s" if clock() >= ends_at else stalled) from None

    @asynccontextmanager
    async def attended(self) -> AsyncIterator[None]:
        """Cancel the task when the client disconnects, and raise ClientLeft then."""
        task = asyncio.current_task()
        left = False

        def on_message(watch: asyncio.Task[Any]) -> None:
            nonlocal left
            if not watch.cancelled() and not self._ended and task is not None:
                left = True
                task.cancel()

        # after the body, the only message that can still arrive is the disconnect
        watch = asyncio.ensure_future(self._receive())
        watch.add_done_callback(on_message)
        try:
            yield
        except asyncio.CancelledError:
            if left and task is not None and task.uncancel() == 0:
                raise ClientLeft from None
            raise
        finally:
            watch.remove_done_callback(on_message)
            watch.cancel()

    async def answer(self, status: int, body: JsonObject, headers: dict[str, str] | None = None) -> None:
        """Send the whole answer as JSON."""
        data = exact_json.dumps(body, default=str)
        raw = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(data))]
        raw += [(name.encode(), value.encode("latin-1")) for name, value in (headers or {}).items()]
        self.started = self._ended = True
        await self._send({"type": "http.response.start", "status": status, "headers": raw})
        await self._send({"type": "http.response.body", "body": data})

    async def stream(self, data: bytes, *, more: bool) -> None:
        """Send a piece of an event stream; the first one starts the answer."""
        if not self.started:
            self.started = True
            headers = [(b"content-type", self.stream_type), *_STREAM_HEADERS]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        self._ended = not more
        if data or not more:
            await self._send({"type": "http.response.body", "body": data, "more_body": more})


def _too_large(max_bytes: int) -> TooLarge:
    return TooLarge("body_too_large", f"the body is larger than {max_bytes} bytes (setting proxy.max_body_bytes)")


def _late(what: str) -> RequestTimedOut:
    return RequestTimedOut("body_stalled", f"{what}; send the call again")
