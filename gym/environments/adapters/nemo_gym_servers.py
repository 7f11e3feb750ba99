"""Use of a resources server's replicas by one worker process: choice, cookies, connections, restarts.

Invariants. A session stays on the replica that seeded it, with its own cookies. Its state lives in that server's
memory, and after a restart the server takes the old cookie for a new session. So an idle connection is held to each
replica while it has sessions; if it ends, the sessions of that time fail, and no others. Connections are shared by all
rollouts and closed when the last one leaves. Calls are never sent twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from uuid import uuid4

import aiohttp
import orjson
from yarl import URL

from gym.errors import BadRow, EnvironmentFailed, EnvironmentUnavailable, Stage
from gym.fields.masked import mask_address
from gym.jsontypes import JsonObject
from gym.model_client.http.guarded import connector_to
from gym.model_client.http.hosts import HostRules, hosts_of
from gym.plain import exact_json
from gym.wire.http_answers import ANSWER_BYTES, PLAIN, AnswerTooLarge, read_within
from gym.wire.nemo_gym_resources import close_request, said

KEEP_ALIVE_S = 4.0  # shorter than uvicorn's own 5 s, so that no call meets a connection that is being closed
AVOID_S = 2.0  # after a failed connection, while there is another replica
CLOSE_S = 2.0
AWAY = frozenset({502, 503, 504})
_JSON = {"Content-Type": "application/json", **PLAIN}
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallBounds:
    """Seconds for each kind of call, and the size of an answer."""

    connect_s: float = 5.0
    seed_s: float = 60.0
    call_s: float = 60.0
    verify_s: float = 300.0
    most_bytes: int = ANSWER_BYTES


@dataclass(frozen=True, slots=True)
class ServerAnswer:
    """Answer of a server."""

    status: int
    body: bytes

    @property
    def text(self) -> str:
        """Return the body as it is shown to a model."""
        return self.body.decode("utf-8", "replace")


@dataclass(slots=True)
class ServerReplica:
    """One server. `life` is incremented when it is seen to end."""

    url: URL
    life: int = 0
    sessions: int = 0
    avoid_until: float = 0.0
    closes: bool = True  # whether it has /close_session, which came with 0.7
    watch: asyncio.Task[None] | None = None
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def shown_url(self) -> str:
        """URL for errors and logs, without credentials."""
        return mask_address(str(self.url))

    def is_watched(self) -> bool:
        """Whether the end of the server would be noticed."""
        return self.watch is not None and not self.watch.done()


class Servers:
    """All replicas; one event loop at a time. Rollouts `seed` a session each and close it."""

    def __init__(
        self, urls: tuple[str, ...], bounds: CallBounds, *, watch: bool = True, tell_close: bool = True
    ) -> None:
        self._replicas = [ServerReplica(URL(url)) for url in urls]
        self.bounds = bounds
        self._watch = watch
        self.tell_close = tell_close
        self._client: aiohttp.ClientSession | None = None
        self._guests = 0

    def load(self) -> dict[str, int]:
        """Return the number of open sessions by replica."""
        return {replica.shown_url: replica.sessions for replica in self._replicas}

    async def seed(self, row: JsonObject) -> ServerSession:
        """Open a session on the replica with the fewest; if it cannot be reached, try the next.

        Raises BadRow if the server refuses the row, EnvironmentFailed if it raises on the row, EnvironmentUnavailable
        if no replica can be reached.
        """
        self._enter()
        try:
            return await self._seeded_somewhere(exact_json.dumps(row))
        except BaseException:
            await self._leave()
            raise

    async def _seeded_somewhere(self, body: bytes) -> ServerSession:
        away = EnvironmentUnavailable("there are no servers")
        for replica in self._in_order():
            try:
                return await self._seeded(replica, body)
            except EnvironmentUnavailable as error:
                replica.avoid_until = time.monotonic() + AVOID_S
                away = error
        raise away

    def _in_order(self) -> list[ServerReplica]:
        now = time.monotonic()
        return sorted(self._replicas, key=lambda each: (each.avoid_until > now, each.sessions))

    async def _seeded(self, replica: ServerReplica, body: bytes) -> ServerSession:
        replica.sessions += 1  # counted now, so that simultaneous sessions spread out
        try:
            if self._watch:
                await self._watched(replica)
            session = ServerSession(self, replica)
            _check_seeded(replica.shown_url, await session.post("seed_session", body, within_s=self.bounds.seed_s))
        except BaseException:
            replica.sessions -= 1
            raise
        return session

    async def done(self, replica: ServerReplica) -> None:
        """Record the end of a session."""
        replica.sessions -= 1
        await self._leave()

    def _enter(self) -> None:
        self._guests += 1
        if self._client is None:
            urls = [str(replica.url) for replica in self._replicas]
            self._client = aiohttp.ClientSession(
                connector=connector_to(urls, limit=0, keepalive_timeout=KEEP_ALIVE_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=self.bounds.connect_s),
                auto_decompress=False,
            )

    async def _leave(self) -> None:
        self._guests -= 1
        if self._guests:
            return
        client, self._client = self._client, None
        watches = [replica.watch for replica in self._replicas if replica.watch is not None]
        for replica in self._replicas:
            replica.watch = None
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)
        if client is not None:
            await client.close()

    @property
    def client(self) -> aiohttp.ClientSession:
        """Return the HTTP client. Raises RuntimeError without an open session."""
        if self._client is None:
            raise RuntimeError("no session is open")
        return self._client

    async def _watched(self, replica: ServerReplica) -> None:
        """Hold a connection to the replica. Raises EnvironmentUnavailable if it cannot be opened."""
        async with replica.turn:
            if replica.is_watched():
                return
            url = replica.url
            tls = ssl.create_default_context() if url.scheme == "https" else None
            try:
                async with asyncio.timeout(self.bounds.connect_s):
                    reader, writer = await asyncio.open_connection(url.host, url.port, ssl=tls)
                _check_address(url, writer)
            except OSError as error:  # a TimeoutError is one
                why = str(error) or f"no connection within {self.bounds.connect_s:g} s"
                raise EnvironmentUnavailable(f"{replica.shown_url} cannot be reached: {why}") from error
            _keep_alive(writer)
            replica.watch = asyncio.get_running_loop().create_task(_until_end(replica, reader, writer))


def _check_address(url: URL, writer: asyncio.StreamWriter) -> None:
    """Raise OSError, and wait no longer, for a name of an address that only this machine should reach."""
    if not HostRules(named=hosts_of([str(url)])).allows(url.host or "", writer.get_extra_info("peername")[0]):
        writer.transport.abort()
        raise OSError(None, f"{url.host} has no address that may be called")


class ServerSession:
    """One rollout's session on one replica."""

    def __init__(self, servers: Servers, replica: ServerReplica) -> None:
        self._servers = servers
        self._replica = replica
        self._life = replica.life
        self._jar = aiohttp.CookieJar(unsafe=True)  # which takes cookies of numeric addresses too
        self._turn = asyncio.Lock()
        self._closed = False
        self.session_id = uuid4().hex

    @property
    def shown_url(self) -> str:
        """URL of the replica for errors, without credentials."""
        return self._replica.shown_url

    async def post(self, route: str, body: bytes, *, within_s: float) -> ServerAnswer:
        """Send one call; those of a session run one after the other, as in NeMo Gym's own agents.

        Raises EnvironmentUnavailable if the server is away, has been restarted, or does not answer in time.
        """
        async with self._turn:
            self._check_alive()
            url = self._replica.url / route
            with self._named(mask_address(str(url)), within_s):
                async with asyncio.timeout(within_s):
                    cookies = self._jar.filter_cookies(url)
                    async with self._servers.client.post(
                        url, data=body, headers=_JSON, cookies=cookies, allow_redirects=False
                    ) as response:
                        answer = ServerAnswer(response.status, await self._read(response))
            self._jar.update_cookies(response.cookies, url)
            self._check_alive()
            return answer

    async def close(self) -> None:
        """Tell the server to free the session, and leave; in bounded time, and never twice."""
        if self._closed:
            return
        self._closed = True
        replica = self._replica
        try:
            if self._servers.tell_close and replica.closes and replica.life == self._life:
                with contextlib.suppress(EnvironmentUnavailable):
                    body = orjson.dumps(close_request(self.session_id))
                    answer = await self.post("close_session", body, within_s=CLOSE_S)
                    replica.closes = answer.status not in (404, 405)
        finally:
            await self._servers.done(replica)

    def _check_alive(self) -> None:
        if self._replica.life != self._life:
            raise EnvironmentUnavailable(
                f"{self.shown_url} has ended since this session began there, and its state with it"
            )

    @contextlib.contextmanager
    def _named(self, shown_url: str, within_s: float) -> Iterator[None]:
        """Raise EnvironmentUnavailable in place of a timeout or a connection error."""
        try:
            yield
        except TimeoutError as error:
            raise EnvironmentUnavailable(f"{shown_url} did not answer within {within_s:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise EnvironmentUnavailable(f"{shown_url}: {type(error).__name__}: {error}") from error

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        most = self._servers.bounds.most_bytes
        try:
            return await read_within(response, most)
        except AnswerTooLarge as error:
            failure = EnvironmentFailed(f"{mask_address(str(response.url))} answered with more than {most} bytes")
            failure.stage = Stage.TOOL
            raise failure from error


def _check_seeded(shown_url: str, answer: ServerAnswer) -> None:
    """Raise the errors that `Servers.seed` documents."""
    if answer.status == 422:
        raise BadRow(f"the resources server refuses the row: {said(answer.text)}")
    message = f"{shown_url}/seed_session: HTTP {answer.status}, {said(answer.text)}"
    if answer.status in (429, *AWAY):
        raise EnvironmentUnavailable(message)
    if answer.status >= 300:
        raise EnvironmentFailed(message)


async def _until_end(replica: ServerReplica, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Wait until the server closes the connection, on which nothing is ever sent."""
    began = time.monotonic()
    try:
        with contextlib.suppress(OSError):
            await reader.read(1)
        replica.life += 1
        if replica.sessions:
            _LOG.warning(
                "%s ended a connection after %.0f s: its %d sessions are lost; where something between closes quiet "
                "connections, set `watch: false`",
                replica.shown_url,
                time.monotonic() - began,
                replica.sessions,
                extra={"action": "resources_server_ended"},
            )
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def _keep_alive(writer: asyncio.StreamWriter) -> None:
    """Have the system detect that the machine at the other end is gone."""
    connection: socket.socket | None = writer.get_extra_info("socket")
    if connection is None:
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
