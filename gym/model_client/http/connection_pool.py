"""Pool of persistent HTTP/1.1 connections to model servers.

Specialised: a general client costs more than all other work of the farm for a call (docs/performance.md).

Invariants. A connection carries one exchange at a time. An exchange that is left or cancelled before its end closes its
connection, at which a server stops generating. Waiting callers get connections in order of arrival.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from functools import lru_cache
from types import TracebackType
from typing import Any

import aiohappyeyeballs
from yarl import URL

from gym.model_client.http.connection import ANSWER_BYTES, ConnectFailed, Connection, HttpError, Server, UnusableAnswer

__all__ = [
    "AddressRefused",
    "ConnectFailed",
    "Connections",
    "Exchange",
    "HttpError",
    "HttpResponse",
    "UnsendableHeader",
    "UnusableAnswer",
]

NAMES_S = 10.0  # how long the addresses of a name are remembered
HAPPY_EYEBALLS_S = 0.25  # RFC 8305, section 8


class UnsendableHeader(ValueError):
    """Header with characters that would end its line."""


class AddressRefused(ConnectFailed):
    """Host without an address that may be called."""


class HttpResponse:
    """Answer to a request; its body may still be in transit."""

    __slots__ = ("_connection", "status")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.status = connection.status

    def header(self, name: str) -> str | None:
        """Return the first header of a name, given in lower case."""
        return self._connection.header(name)

    async def read(self) -> bytes:
        """Read the body. Raises HttpError if it breaks off."""
        return await self._connection.read()

    async def iter_any(self) -> AsyncIterator[bytes]:
        """Yield the body in pieces as they arrive. Raises HttpError if it breaks off."""
        while piece := await self._connection.data():
            yield piece


class Exchange:
    """Exchange as an async context manager: enters with the answer once its head is read. Raises HttpError."""

    __slots__ = ("_connection", "_connections", "_request", "_server")

    def __init__(self, connections: Connections, server: Server, request: bytes) -> None:
        self._connections = connections
        self._server = server
        self._request = request
        self._connection: Connection | None = None

    async def __aenter__(self) -> HttpResponse:
        """Take a connection and send the request."""
        connection = await self._connections.take(self._server)
        try:
            await connection.send(self._request)
        except BaseException:
            self._connections.give_back(connection)
            raise
        self._connection = connection
        return HttpResponse(connection)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the connection back; close it if the answer is incomplete."""
        if self._connection is not None:
            self._connections.give_back(self._connection)


class _Pool:
    """Connections to one server; `count` includes those being opened."""

    __slots__ = ("count", "idle", "waiting")

    def __init__(self) -> None:
        self.count = 0
        self.idle: deque[Connection] = deque()  # that were used last are at the right
        self.waiting: deque[asyncio.Future[Connection | None]] = deque()


class Connections:
    """Connection pool of one event loop, with at most `per_server` connections to a server.

    An answer's body may have `answer_bytes`. `allows` is asked for the host and each of its addresses before one is
    connected to. Certificates are checked as the system has it where no other context is
    given.
    """

    def __init__(
        self,
        *,
        per_server: int,
        connect_timeout_s: float,
        idle_s: float,
        answer_bytes: int = ANSWER_BYTES,
        allows: Callable[[str, str], bool] = lambda _host, _address: True,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._answer_bytes = answer_bytes
        self._allows = allows
        self._per_server = per_server
        self._connect_timeout_s = connect_timeout_s
        self._idle_s = idle_s
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._pools: dict[Server, _Pool] = {}
        self._busy: set[Connection] = set()
        self._names: dict[Server, tuple[float, asyncio.Task[list[Any]]]] = {}
        self._sweep: asyncio.TimerHandle | None = None
        self._closed = False

    def close(self) -> None:
        """Close all connections; current exchanges fail, and new ones are refused."""
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
        for pool in self._pools.values():
            for connection in pool.idle:
                connection.close()
        for connection in self._busy:
            connection.close()

    def post(self, url: URL, body: bytes, headers: Mapping[str, str]) -> Exchange:
        """Prepare a POST. Raises UnsendableHeader."""
        server, head = _target(url)
        lines = "".join([f"{name}: {_printable(value)}\r\n" for name, value in headers.items()])
        request = f"{head}{lines}Content-Length: {len(body)}\r\n\r\n".encode()
        return Exchange(self, server, request + body)

    async def take(self, server: Server) -> Connection:
        """Take a connection for exclusive use; `give_back` must follow. Raises ConnectFailed."""
        self._check_open()
        pool = self._pools.get(server)
        if pool is None:
            pool = self._pools[server] = _Pool()
        connection = self._idle(pool)
        if connection is None:
            if pool.count < self._per_server:
                pool.count += 1
            else:
                connection = await self._turn(server, pool)
                if connection is not None and connection.closed:
                    connection = None  # its place is ours
            if connection is None:
                try:
                    connection = await self._connect(server)
                except BaseException:
                    self._end(server, pool)
                    raise
        self._busy.add(connection)
        return connection

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the connections are closed")

    def give_back(self, connection: Connection) -> None:
        """Return a connection after its exchange; close it if it is not reusable."""
        self._busy.discard(connection)
        pool = self._pools[connection.server]
        if not connection.reusable:
            connection.close()
            self._end(connection.server, pool)
            return
        connection.idle_since = self._loop.time()
        if not _hand_on(pool, connection):
            pool.idle.append(connection)
            if self._sweep is None:
                self._sweep = self._loop.call_later(self._idle_s, self._close_idle)

    def _idle(self, pool: _Pool) -> Connection | None:
        oldest = self._loop.time() - self._idle_s
        while pool.idle:
            connection = pool.idle.pop()
            if not connection.closed and connection.idle_since > oldest:
                return connection
            connection.close()
            pool.count -= 1
        return None

    async def _turn(self, server: Server, pool: _Pool) -> Connection | None:
        """Wait for a returned connection, or for None: a free slot to open one."""
        waiter: asyncio.Future[Connection | None] = self._loop.create_future()
        pool.waiting.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.cancelled():
                if waiter in pool.waiting:
                    pool.waiting.remove(waiter)
            elif (given := waiter.result()) is not None:
                self.give_back(given)
            else:
                self._end(server, pool)
            raise

    def _end(self, server: Server, pool: _Pool) -> None:
        """Release the slot of a closed connection to the longest waiter."""
        if not _hand_on(pool, None):
            pool.count -= 1
            if not pool.count:
                del self._pools[server]

    def _close_idle(self) -> None:
        """Close idle connections before the server does, since a request sent at that moment would be lost."""
        self._sweep = None
        now = self._loop.time()
        for server, pool in list(self._pools.items()):
            while pool.idle and (pool.idle[0].closed or now - pool.idle[0].idle_since >= self._idle_s):
                pool.idle.popleft().close()
                self._end(server, pool)
        since = [pool.idle[0].idle_since for pool in self._pools.values() if pool.idle]
        if since:
            self._sweep = self._loop.call_at(min(since) + self._idle_s, self._close_idle)

    async def _connect(self, server: Server) -> Connection:
        where = f"{server.host}:{server.port}"
        fresh = Connection(server, answer_bytes=self._answer_bytes)
        try:
            self._check_open()
            async with asyncio.timeout(self._connect_timeout_s):
                found = await self._addresses(server)
                allowed = [each for each in found if self._allows(server.host, each[4][0])]
                if not allowed:
                    raise AddressRefused(
                        f"{server.host} has no address that may be called (setting policy_hosts, or judge_hosts)"
                    )
                made = await aiohappyeyeballs.start_connection(
                    allowed,
                    happy_eyeballs_delay=HAPPY_EYEBALLS_S,
                    interleave=1,
                    loop=self._loop,
                    socket_factory=_socket,
                )
                options: dict[str, Any] = (
                    {"ssl": self._tls or _tls(), "server_hostname": server.host.rstrip(".")} if server.tls else {}
                )
                try:
                    await self._loop.create_connection(lambda: fresh, sock=made, **options)
                    self._check_open()
                except BaseException:  # the socket is the loop's by now
                    fresh.abandoned = True
                    fresh.close()
                    raise
        except TimeoutError:
            raise ConnectFailed(f"Connection timeout to host {where}") from None
        except (OSError, RuntimeError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConnectFailed(f"Cannot connect to host {where} [{reason}]") from error
        return fresh

    async def _addresses(self, server: Server) -> list[Any]:
        """Resolve a name; concurrent callers share one lookup."""
        now = self._loop.time()
        known = self._names.get(server)
        if known is None or (known[0] <= now and known[1].done()):
            self._names = {each: entry for each, entry in self._names.items() if entry[0] > now}
            found = self._loop.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM)
            looking = asyncio.ensure_future(found)
            # there may be no waiter left
            looking.add_done_callback(lambda done: done.cancelled() or done.exception())
            known = self._names[server] = (now + NAMES_S, looking)
        try:
            return await asyncio.shield(known[1])
        except (OSError, UnicodeError):
            self._names.pop(server, None)
            raise


def _hand_on(pool: _Pool, connection: Connection | None) -> bool:
    """Hand a free connection (or, if None, a free slot) to the longest waiter. Return False if there is none."""
    while pool.waiting:
        waiter = pool.waiting.popleft()
        if not waiter.done():
            waiter.set_result(connection)
            return True
    return False


@lru_cache(maxsize=4096)
def _target(url: URL) -> tuple[Server, str]:
    """Return the server of a URL, and the request head as far as the URL determines it."""
    server = Server(url.raw_host or "", url.port or 0, url.scheme == "https")
    head = f"POST {url.raw_path_qs} HTTP/1.1\r\nHost: {url.host_port_subcomponent}\r\nAccept: */*\r\n"
    return server, head + "Accept-Encoding: identity\r\nUser-Agent: rollout-farm\r\n"


def _printable(value: str) -> str:
    if not value.isprintable():
        raise UnsendableHeader("a header, such as the API key, holds line breaks or other control characters")
    return value


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


def _socket(address: Any) -> socket.socket:
    """Create a socket with TCP keep-alive, since an answer may take minutes."""
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    made.setblocking(False)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return made
