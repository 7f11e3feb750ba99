"""Graceful shutdown of an api or proxy process.

Invariants: once the shutdown has begun, no request waits for an event. When its grace period is over, remaining
requests are answered 503 with `Retry-After`. A stream ends at the end of a chunk, never inside one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gym.errors import Unavailable

T = TypeVar("T")

GRACE_S = 4.0
SETTLE_S = 1.0
RETRY_AFTER_S = 1.0


def shutting_down() -> Unavailable:
    """Return the error for a request that this process can no longer serve."""
    message = "this process of the farm is shutting down; send the same request again"
    return Unavailable("shutting_down", message, retry_after_s=RETRY_AFTER_S)


class Shutdown:
    """Event that every long wait of a request watches."""

    def __init__(self, grace_s: float = GRACE_S) -> None:
        self._grace_s = grace_s
        self._event = asyncio.Event()
        self._waits: set[asyncio.Future[None]] = set()
        self._requests: set[asyncio.Task[Any]] = set()
        self._abandoned: set[asyncio.Future[Any]] = set()

    def has_begun(self) -> bool:
        """Return whether the process is ending."""
        return self._event.is_set()

    @property
    def requests(self) -> int:
        """Return how many requests are under way."""
        return len(self._requests)

    async def wait(self) -> None:
        """Return when the shutdown begins."""
        await self._event.wait()

    def begin(self) -> None:
        """End every wait now, and every request when the grace period is over. Runs on the event loop."""
        if self.has_begun():
            return
        self._event.set()
        for wait in self._waits:
            if not wait.done():
                wait.set_result(None)
        asyncio.get_running_loop().call_later(self._grace_s, self._cut)

    def serve(self) -> None:
        """Reset an earlier shutdown, for an app that is started again."""
        self._event.clear()

    async def bounded(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Return the result of `work`, or None as soon as the shutdown begins."""
        if self.has_begun():
            work.close()
            return None
        task = asyncio.ensure_future(work)
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        either: set[asyncio.Future[Any]] = {task, over}
        self._waits.add(over)
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else None
        finally:
            self._waits.discard(over)
            if not task.done():
                self._abandon(task)

    def attend(self, request: asyncio.Task[Any]) -> Callable[[], None]:
        """Register a request's task, to be cancelled when the grace period is over.

        Return a function that unregisters it.
        """
        self._requests.add(request)
        return lambda: self._requests.discard(request)

    async def settle(self) -> None:
        """Wait until abandoned work has ended, for at most `SETTLE_S`, so that its connections can be closed."""
        if self._abandoned:
            await asyncio.wait(self._abandoned, timeout=SETTLE_S)

    def _abandon(self, task: asyncio.Future[Any]) -> None:
        """Cancel a task without waiting for it: the Redis client may take a while to end."""
        self._abandoned.add(task)
        task.add_done_callback(self._abandoned.discard)
        task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        task.cancel()

    def _cut(self) -> None:
        for request in self._requests:
            request.cancel()


class EndRequests:
    """ASGI middleware that answers requests which a shutdown cancels."""

    def __init__(self, app: ASGIApp, shutdown: Shutdown) -> None:
        self._app = app
        self._shutdown = shutdown

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one scope."""
        task = asyncio.current_task()
        if scope["type"] != "http" or task is None:
            await self._app(scope, receive, send)
            return
        answer = _Answer(send)
        leave = self._shutdown.attend(task)
        try:
            await self._app(scope, receive, answer.send)
        except asyncio.CancelledError:
            if not self._shutdown.has_begun() or not answer.can_end:
                raise
            task.uncancel()
            await answer.end()
        finally:
            leave()


class _Answer:
    """Record of the response sent so far, and how to end it validly."""

    def __init__(self, send: Callable[[Message], Awaitable[None]]) -> None:
        self._send = send
        self._started = False
        self._ended = False
        self._has_length = False

    @property
    def can_end(self) -> bool:
        """Return whether a valid end can still be sent."""
        return not self._ended and not (self._started and self._has_length)

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._started = True
            self._has_length = any(name.lower() == b"content-length" for name, _ in message["headers"])
        elif message["type"] == "http.response.body":
            self._ended = not message.get("more_body", False)
        await self._send(message)

    async def end(self) -> None:
        if self._started:
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        error = shutting_down()
        body = orjson.dumps({"error": {"code": error.code, "message": error.message, "details": {}}})
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"retry-after", b"%d" % RETRY_AFTER_S),
        ]
        await self._send({"type": "http.response.start", "status": error.status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})
