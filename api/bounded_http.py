"""HTTP/1.1 connections to the api and the proxy, bounded before a key is looked at.

uvicorn on httptools joins the pieces of a header without a bound, waits for ever for the rest of a head, and takes any
number of connections. Here a head has `HEAD_BYTES`, `HEADERS` and `HEAD_S`; what comes between two pieces of a body
(chunk extensions, trailers) has `HEAD_BYTES` too, and trailers are dropped; a refused body is drained for `DRAIN_S`.

Invariant: a connection without a request under way never keeps another out: when the process has as many as it takes,
the one that has been idle longest is closed.
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
LINGER_S = 0.5  # in which a refused client may still send, so that it reads why
PIPELINED = 16
RETRY_AFTER_S = 2
OTHER_FILES = 256  # that a process has open beside its connections

_REASONS = {408: b"Request Timeout", 431: b"Request Header Fields Too Large", 503: b"Service Unavailable"}


class Refused(Exception):
    """The connection has been refused; ends the parser's work on what came."""


class BoundedHttp(HttpToolsProtocol):
    """One connection; `bounded_http` makes the class of a server. `idle` are those without a request under way."""

    most_connections: ClassVar[int]
    idle: ClassVar[dict[BoundedHttp, None]]  # in the order in which they became so

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._state: Literal["between", "head", "body"] = "between"
        self._refused = False
        self._moved = False  # a message or a piece of its body has begun with the bytes at hand
        self._overhead_bytes = 0
        self._head_bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    # what the event loop calls

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """Take the connection, or refuse it where the process has as many as it takes."""
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
        """Forget it."""
        self._stop_timer()
        self.idle.pop(self, None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse within the bounds."""
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

    # what the parser calls

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        self._moved, self._state = True, "head"
        self._head_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A piece of the target."""
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; trailers are dropped, since nobody looks for a header that late."""
        if self._state == "head":
            self._count_head(len(name) + len(value) + 4)
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The request begins."""
        self._moved, self._state = True, "body"
        self._stop_timer()
        self.idle.pop(self, None)
        if len(self.pipeline) >= PIPELINED:
            self._refused = True
            self.transport.abort()
            raise Refused
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._moved = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The end of the request, whose answer may have gone before."""
        self._state, self._moved = "between", True
        self._stop_timer()
        super().on_message_complete()
        if self.cycle.response_complete:
            self.idle[self] = None

    # what uvicorn calls

    def on_response_complete(self) -> None:
        """The end of the answer. The rest of a body that was not wanted is drained for a while."""
        super().on_response_complete()
        if self.transport.is_closing() or self.pipeline:
            return
        if self._state == "between":
            self.idle[self] = None
        elif self._state == "body" and self._timer is None:
            self._timer = self.loop.call_later(DRAIN_S, self.transport.close)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, where nothing has been answered."""
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
        """Answer and close; at once where another answer is on its way."""
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
        """Make room; false where every connection has a request under way."""
        oldest = next(iter(self.idle), None)
        if oldest is None:
            return False
        del self.idle[oldest]
        self.connections.discard(oldest)
        oldest.transport.abort()
        return True


def bounded_http(most_connections: int) -> type[BoundedHttp]:
    """Return the protocol class of one server, as `uvicorn.Config(http=…)` takes it."""
    return type("BoundedHttpOfServer", (BoundedHttp,), {"most_connections": most_connections, "idle": {}})


def connections_possible(wanted: int) -> int:
    """Return how many connections this process may take, of those wanted; raises its limit of open files if it can.

    Each may need a second descriptor, to a model server.
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
