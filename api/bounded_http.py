"""HTTP/1.1 connections to the api and the proxy, bounded before authentication.

uvicorn on httptools joins the pieces of a header without a bound, waits forever for the rest of a head, and accepts any
number of connections. Here a head is limited to `HEAD_BYTES`, `HEADERS` and `HEAD_S`. The data between two pieces of a
body (chunk extensions, trailers) is limited to `HEAD_BYTES` too, and trailers are dropped. A refused body is drained
for `DRAIN_S`.

Invariant: an idle connection never keeps another one out. When the process has reached its limit of connections, the
connection that has been idle longest is closed.
"""

from __future__ import annotations

import asyncio
import resource
from typing import Any, ClassVar, Literal

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES = 64 * 1024
HEADERS = 128
HEAD_S = 10.0
DRAIN_S = 10.0
LINGER_S = 0.5  # in which a refused client may still send, so that it reads the reason
PIPELINED = 16
RETRY_AFTER_S = 2
OTHER_FILES = 256  # files that a process has open beside its connections

_REASONS = {408: b"Request Timeout", 431: b"Request Header Fields Too Large", 503: b"Service Unavailable"}


class Refused(Exception):
    """Raised to stop the parser once the connection has been refused."""


class BoundedHttp(HttpToolsProtocol):
    """One connection; `bounded_http` makes the class of a server.

    `idle` holds the connections without a request under way.
    """

    most_connections: ClassVar[int]
    idle: ClassVar[dict[BoundedHttp, None]]  # in the order in which they became idle

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._state: Literal["between", "head", "body"] = "between"
        self._refused = False
        self._moved = False  # the received bytes began a message or a piece of its body
        self._overhead_bytes = 0
        self._head_bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    # callbacks of the event loop

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """Accept the connection, or refuse it if the process has reached its limit."""
        if len(self.connections) >= self.most_connections and not self._close_idle_one():
            self.transport = transport
            self._refused = True
            transport.write(_answer(503, "too_many_connections", f"{self.most_connections} connections are open"))
            transport.close()
            return
        super().connection_made(transport)
        self.idle[self] = None
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Remove the connection from the records."""
        self._stop_timer()
        self.idle.pop(self, None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse received bytes within the bounds."""
        if self._refused:
            return
        self._moved = False
        super().data_received(data)
        if self._refused or self.transport.is_closing():
            return
        self._overhead_bytes = 0 if self._moved else self._overhead_bytes + len(data)
        if self._overhead_bytes > HEAD_BYTES:
            self._refuse_head()
        elif self._timer is None and (self._state == "head" or (self._state == "between" and not self._moved)):
            self._expect_head()

    # callbacks of the parser

    def on_message_begin(self) -> None:
        """Start the limits of a new request at its first byte."""
        self._moved, self._state = True, "head"
        self._head_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Add a piece of the target."""
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header. Trailers are dropped: no application reads a header that late."""
        if self._state == "head":
            self._count_head(len(name) + len(value) + 4)
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Hand the request to the application."""
        self._moved, self._state = True, "body"
        self._stop_timer()
        self.idle.pop(self, None)
        if len(self.pipeline) >= PIPELINED:
            self._refused = True
            self.transport.abort()
            raise Refused
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Add a piece of the body."""
        self._moved = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note the end of the request; its response may already have been sent."""
        self._state, self._moved = "between", True
        self._stop_timer()
        super().on_message_complete()
        if self.cycle.response_complete:
            self.idle[self] = None

    # callbacks of uvicorn

    def on_response_complete(self) -> None:
        """Finish a response. The rest of an unread body is drained for a while."""
        super().on_response_complete()
        if self.transport.is_closing() or self.pipeline:
            return
        if self._state == "between":
            self.idle[self] = None
        elif self._state == "body" and self._timer is None:
            self._timer = self.loop.call_later(DRAIN_S, self.transport.close)

    def send_400_response(self, msg: str) -> None:
        """Answer 400 to bytes that are not HTTP, unless a response has begun."""
        if not self._refused:
            super().send_400_response(msg)

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > HEAD_BYTES or len(self.headers) >= HEADERS:
            self._refuse_head()
            raise Refused

    def _refuse_head(self) -> None:
        self._refuse(
            431, "head_too_large", f"a request has at most {HEAD_BYTES} bytes of headers, and {HEADERS} of them"
        )

    def _expect_head(self) -> None:
        self._timer = self.loop.call_later(HEAD_S, self._end_head)

    def _end_head(self) -> None:
        self._timer = None
        if self._state == "head":
            self._refuse(408, "head_stalled", f"the head of the request was not complete after {HEAD_S:g} s")
        else:
            self.transport.close()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, status: int, code: str, message: str) -> None:
        """Send an error and close; close at once if another response has begun."""
        self._refused = True
        self._stop_timer()
        self.idle.pop(self, None)
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.abort()
            return
        self.transport.write(_answer(status, code, message))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER_S, self.transport.abort)

    def _close_idle_one(self) -> bool:
        """Close the connection idle longest. Return False if every connection has a request under way."""
        oldest = next(iter(self.idle), None)
        if oldest is None:
            return False
        del self.idle[oldest]
        self.connections.discard(oldest)
        oldest.transport.abort()
        return True


def bounded_http(most_connections: int) -> type[BoundedHttp]:
    """Return the protocol class of one server, as `uvicorn.Config(http=…)` accepts it."""
    return type("BoundedHttpOfServer", (BoundedHttp,), {"most_connections": most_connections, "idle": {}})


def connections_possible(wanted: int) -> int:
    """Return how many of the wanted connections this process may accept; raise its limit of open files if possible.

    Each connection may need a second descriptor, to a model server.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * wanted + OTHER_FILES
    if soft < needed and soft < hard:
        soft = min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(1, min(wanted, (soft - OTHER_FILES) // 2))


def _answer(status: int, code: str, message: str) -> bytes:
    body = orjson.dumps({"error": {"code": code, "message": message, "details": {}}})
    retry = b"retry-after: %d\r\n" % RETRY_AFTER_S if status == 503 else b""
    return (
        b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%bconnection: close\r\n\r\n%b"
        % (
            status,
            _REASONS[status],
            len(body),
            retry,
            body,
        )
    )
