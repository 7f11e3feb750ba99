"""One call of the relay as an ASGI exchange: the body arrives in pieces, the response leaves in pieces.

Invariant: apart from `MAX_CALLS`, a call holds at most one piece of its body, for which a grant was given, and `WINDOW`
pieces of its response in Redis. Once its client has gone it sees a disconnect and sends no more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any
from urllib.parse import unquote

import orjson
from redis.exceptions import RedisError

from gym.errors import Malformed, RequestError
from gym.relay.frames import PIECE_BYTES, WINDOW, Asker, Frame, cut
from gym.relay.shares import Shares

Message = MutableMapping[str, Any]
App = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]
"""An ASGI 3 application."""

STALL_S = 30.0
EXTENSION = "farm.relay"
"""In the scope's `extensions`: the caller, as an `Asker`."""
# headers that belong to the HTTP connection, or that would name another caller
_DROPPED = frozenset({"host", "authorization", "x-api-key", "content-length", "transfer-encoding", "connection"})
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"})
_LOG = logging.getLogger(__name__)


class RelayCall:
    """A call under way; `channel` is the client's channel for responses."""

    def __init__(
        self,
        ask: Frame,
        asker: Asker,
        channel: str,
        publish: Callable[[str, bytes], Awaitable[int]],
        grants: Shares,
    ) -> None:
        self.asker = asker
        self.channel = channel
        self._ask = ask
        self._publish = publish
        self._grants = grants
        self._granted = False
        self._pieces: asyncio.Queue[tuple[bytes, bool]] = asyncio.Queue()
        self._pieces.put_nowait((ask.payload, ask.head.get("last") is True))
        self._body_ended = False
        self._window = asyncio.Semaphore(WINDOW)
        self._left = asyncio.Event()
        self._start: Message = {}
        self._part = 0
        self._ended = False

    async def run(self, app: App) -> None:
        """Answer the call. Nothing is raised: an error becomes the response, or is logged if the client has gone."""
        try:
            scope = _scope(self._ask, self.asker)
        except RequestError as error:
            await self.refuse(error)
            return
        try:
            await app(scope, self._receive, self._send)
        except Exception:  # noqa: BLE001  the ASGI edge: the app has answered 500 already, or its client has gone
            _LOG.exception("%s %s failed", scope["method"], scope["path"], extra={"action": "relay_call_failed"})
        finally:
            self._return_grant()
        if not self._ended and not self._left.is_set():
            await self._tell(Frame("lost", self._ask.call, {}))

    async def refuse(self, error: RequestError) -> None:
        """Answer with an error of the relay itself, in the API's shape."""
        body = {"error": {"code": error.code, "message": error.message, "details": error.details}}
        headers = [(b"content-type", b"application/json")]
        if error.retry_after_s is not None:
            headers.append((b"retry-after", str(int(error.retry_after_s)).encode()))
        await self._send({"type": "http.response.start", "status": error.status, "headers": headers})
        await self._send({"type": "http.response.body", "body": orjson.dumps(body)})

    def hear(self, frame: Frame) -> None:
        """Process a further frame of the client."""
        match frame.kind:
            case "body" if self._granted:
                self._return_grant()
                self._pieces.put_nowait((frame.payload, frame.head.get("last") is True))
            case "more":
                for _ in range(min(frame.number("pieces"), WINDOW)):
                    self._window.release()

    def leave(self) -> None:
        """End the call: the client has gone, or a message cannot have reached it."""
        if not self._left.is_set():
            self._left.set()
            self._window.release()  # its waiter finds that it is over
            self._pieces.put_nowait((b"", True))

    async def _receive(self) -> Message:
        if self._left.is_set() or self._body_ended:
            await self._left.wait()
            return {"type": "http.disconnect"}
        if self._pieces.empty() and not self._granted:
            await self._grants.wait(self.asker.name)
            self._granted = True
            await self._tell(Frame("more", self._ask.call, {"pieces": 1}))
        piece, last = await self._pieces.get()
        if self._left.is_set():
            return {"type": "http.disconnect"}
        self._body_ended = last
        return {"type": "http.request", "body": piece, "more_body": not last}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            return
        more = bool(message.get("more_body", False))
        for piece, last in cut([message.get("body", b"")], PIECE_BYTES):
            if piece or not more:
                await self._say(piece, last=last and not more)

    async def _say(self, piece: bytes, *, last: bool) -> None:
        if self._left.is_set():
            return
        try:
            async with asyncio.timeout(STALL_S):
                await self._window.acquire()
        except TimeoutError:
            self.leave()
        if self._left.is_set():
            return
        head: dict[str, Any] = {"part": self._part, "last": last}
        if self._part == 0:
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in self._start["headers"]}
            head |= {"status": self._start["status"], "headers": headers}
        await self._tell(Frame("part" if self._part else "answer", self._ask.call, head, piece))
        self._part += 1
        self._ended = last

    async def _tell(self, frame: Frame) -> None:
        try:
            if not await self._publish(self.channel, frame.encode()):
                self.leave()
        except RedisError as error:
            reason = type(error).__name__
            _LOG.warning("a response was lost: %s", reason, extra={"action": "relay_answer_lost"})
            self.leave()

    def _return_grant(self) -> None:
        if self._granted:
            self._granted = False
            self._grants.give_back(self.asker.name)


def _scope(ask: Frame, asker: Asker) -> Message:
    """Return the ASGI scope of a request. Raises Malformed."""
    method, path, headers = ask.text("method"), ask.text("path"), ask.head.get("headers")
    if method not in _METHODS or not path.startswith("/") or not path.isascii() or not isinstance(headers, Mapping):
        raise Malformed("malformed_ask", "a call has a method, a path that starts with /, and headers")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": ask.text("query").encode(),
        "root_path": "",
        "headers": [
            (b"host", b"farm"),
            *(
                (str(name).lower().encode("latin-1", "replace"), str(value).encode("latin-1", "replace"))
                for name, value in headers.items()
                if str(name).lower() not in _DROPPED
            ),
        ],
        "client": (asker.name, 0),
        "server": ("farm", None),
        "extensions": {EXTENSION: asker},
    }
