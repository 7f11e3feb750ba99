"""Connection to a model server: HTTP/1.1 with the parser of httptools, one exchange at a time.

Invariants. A connection is reused only if the request was sent completely and the answer was complete, with no bytes
after it. A slow reader causes backpressure on the server. Answers are read without redirects, cookies or compression.
Memory is bounded: the body by `answer_bytes`, all bytes between its pieces (heads, chunk extensions, trailers) by
`HEAD_BYTES`.
"""

from __future__ import annotations

import asyncio
from typing import Literal, NamedTuple, cast

import httptools

ANSWER_BYTES = 32 * 2**20  # the most that the body of an answer may be
HEAD_BYTES = 2**16  # the most that the head of an answer may be, and its trailers
UNREAD_BYTES = 2**18  # of unread data, at which reading from the server pauses


class HttpError(Exception):
    """Failure to connect, a broken connection, or an answer that is not HTTP."""


class ConnectFailed(HttpError):
    """Failure to connect to the server."""


class UnusableAnswer(HttpError):
    """Answer that a retry would get again: too large, or compressed without a request for it."""


class Server(NamedTuple):
    """Address of a server."""

    host: str
    port: int
    tls: bool


class Connection(asyncio.Protocol):
    """Connection that makes one exchange at a time; used by `Connections` only."""

    def __init__(self, server: Server, *, answer_bytes: int = ANSWER_BYTES) -> None:
        self.server = server
        self._answer_bytes = answer_bytes
        self.idle_since = 0.0
        self.abandoned = False  # the caller no longer waits for the connect
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._wants: Literal["head", "data", "end"] = "head"
        self._open = False  # an exchange is under way
        self._begin()

    def _begin(self) -> None:
        self._headers: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self._unread = 0
        self._body_bytes = 0
        self._overhead_bytes = 0  # since the last piece of the body
        self._headed = self._done = self._paused = False
        self._again = False  # the connection may be used for another exchange
        self._error: HttpError | None = None
        self.status = 0

    @property
    def reusable(self) -> bool:
        """Whether the exchange is complete and another may follow."""
        if self._transport is None or self._paused or not (self._done and self._again):
            return False
        # after an early answer the rest of the request would be read as the next one
        return not self._transport.is_closing() and not self._transport.get_write_buffer_size()

    @property
    def closed(self) -> bool:
        """Whether either side has closed the connection."""
        return self._transport is None or self._transport.is_closing()

    def close(self) -> None:
        """Abort the connection; data in transit is lost."""
        if self._transport is not None:
            self._transport.abort()

    async def send(self, request: bytes) -> None:
        """Start an exchange and wait for the head of the answer. Raises HttpError."""
        if self._transport is None or self.closed:
            raise HttpError("Server disconnected")
        self._begin()
        self._open = True
        self._transport.write(request)
        await self._until("head")

    def header(self, name: str) -> str | None:
        """Return the first header of a name, given in lower case."""
        wanted = name.encode()
        found = next((value for each, value in self._headers if each.lower() == wanted), None)
        return None if found is None else found.decode("latin-1")

    async def read(self) -> bytes:
        """Read the rest of the body. Raises HttpError if it breaks off."""
        await self._until("end")
        return self._taken()

    async def data(self) -> bytes:
        """Wait for a part of the body and return it; empty at the end. Raises HttpError."""
        await self._until("data")
        return self._taken()

    def _taken(self) -> bytes:
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body.clear()
        self._unread = 0
        return body

    async def _until(self, wanted: Literal["head", "data", "end"]) -> None:
        self._wants = wanted
        if self._paused and self._transport is not None and (wanted == "end" or not self._body):
            self._paused = False
            self._transport.resume_reading()
        while not self._has() and self._error is None:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self._error is not None and not (wanted == "data" and self._body):
            raise self._error

    def _has(self) -> bool:
        if self._wants == "head":
            return self._headed
        return self._done or (self._wants == "data" and bool(self._body))

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done() and (self._error is not None or self._has()):
            self._waiter.set_result(None)

    def _fail(self, error: HttpError) -> None:
        self._again = self._open = False
        self.close()
        if not self._done and self._error is None:
            self._error = error
            self._body.clear()
            self._wake()

    # callbacks of the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Store the transport; close it if the caller has given up."""
        self._transport = cast("asyncio.Transport", transport)
        if self.abandoned:
            self.close()

    def data_received(self, data: bytes) -> None:
        """Feed bytes of an answer to the parser; unexpected bytes close the connection."""
        if not self._open:
            self.close()
            return
        before = self._body_bytes
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._fail(HttpError("the server switched to another protocol"))
        except httptools.HttpParserError as error:
            self._fail(HttpError(f"the answer is no HTTP: {error}"))
        else:
            # the parser joins the pieces of a header or a trailer, so these are bounded here
            self._overhead_bytes = self._overhead_bytes + len(data) if self._body_bytes == before else 0
            if self._overhead_bytes > HEAD_BYTES and self._open:
                part = "trailer" if self._headed else "head"
                self._fail(UnusableAnswer(f"the {part} of the answer is larger than {HEAD_BYTES} bytes"))

    def eof_received(self) -> None:
        """End the exchange: the server sends no more data."""
        self._end(None)
        self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the exchange: the connection was closed by either side."""
        self._end(exc)
        del self._parser  # reference cycle

    def _end(self, error: Exception | None) -> None:
        if self._open:
            if error is None and self._headed and not self._framed():
                self.on_message_complete()
            else:
                self._fail(HttpError("Server disconnected" if error is None else f"Server disconnected: {error}"))
        self._again = False

    # callbacks of the parser

    def on_message_begin(self) -> None:
        """Mark the connection as not reusable at the start of an unrequested second answer."""
        self._again = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Store a header; ignore a trailer."""
        if not self._headed:
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Handle a complete head; a 1xx head precedes the actual one (RFC 9110, 15.2)."""
        status = self._parser.get_status_code()
        if self._done:
            return
        if status < 200:
            self._headers.clear()
            return
        self.status = status
        self._headed = True
        declared = self.header("content-length") or ""
        if declared.isdecimal() and int(declared[:20]) > self._answer_bytes:
            self._fail(self._too_large())
        elif status == 200 and (coding := self.header("content-encoding") or "identity").lower() != "identity":
            self._fail(UnusableAnswer(f"the answer is compressed ({coding[:40]}), which was not asked for"))
        self._wake()

    def _too_large(self) -> UnusableAnswer:
        return UnusableAnswer(f"the answer is larger than {self._answer_bytes} bytes (setting model.max_answer_bytes)")

    def on_body(self, body: bytes) -> None:
        """Store a part of the body."""
        if self._done or not self._headed or self._error is not None:
            return
        self._body_bytes += len(body)
        if self._body_bytes > self._answer_bytes:
            self._fail(self._too_large())
            return
        self._body.append(body)
        self._unread += len(body)
        if self._unread > UNREAD_BYTES and self._wants != "end" and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def on_message_complete(self) -> None:
        """Complete the answer."""
        if not self._headed or self._done:
            return
        self._done = True
        self._again = self._framed() and self._parser.should_keep_alive()
        self._open = False
        self._wake()

    def _framed(self) -> bool:
        """Return whether the head delimits the body; else the connection's end does (RFC 9112, 6.3)."""
        if self.status in (204, 304):
            return True
        coding = self.header("transfer-encoding")
        if coding is not None:
            return coding.lower().endswith("chunked")
        return self.header("content-length") is not None
