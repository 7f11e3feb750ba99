"""One session with an OpenEnv server: a WebSocket, on which each message has one answer.

Invariants. A socket is read all the time, so that pings are answered and the end of a silent one is noticed between
calls. After an answer that did not come in time it is closed: a late one would be taken for the next.

Protocol: `openenv/core/env_server/http_server.py` and `types.py` of openenv-core 0.3.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
from yarl import URL

from gym.environments.capacity import waiting_for_capacity
from gym.errors import EnvironmentUnavailable
from gym.fields.masked import mask_address
from gym.jsontypes import JsonObject
from gym.model_client.http.guarded import connector_to, no_redirects
from gym.plain import exact_json

CLOSE_S = 2.0
FIRST_WAIT_S = 0.1
LONGEST_WAIT_S = 5.0
FULL_STATUSES = frozenset({429, 503})
MOST_BYTES = 16 * 2**20
MOST_UNASKED = 4  # unexpected messages; a server that sends more is out of step


class ServerError(Exception):
    """An error message of the server; `code` is OpenEnv's, such as VALIDATION_ERROR."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class ServerFull(Exception):
    """Error of a server that has its maximum of sessions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketTimeouts:
    """Seconds for each step of a session. `ping_s` finds a dead connection after one and a half times as long."""

    connect_s: float = 5.0
    capacity_s: float = 60.0
    reset_s: float = 60.0
    call_s: float = 60.0
    ping_s: float = 10.0


class OpenEnvSocket:
    """An open session, made by `connect`. The caller closes it."""

    def __init__(self, url: URL, client: aiohttp.ClientSession, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._shown_url = mask_address(str(url))
        self._client = client
        self._socket = socket
        self._answers: asyncio.Queue[JsonObject | None] = asyncio.Queue()
        self._reader = asyncio.get_running_loop().create_task(self._read())

    @classmethod
    async def connect(cls, url: URL, waits: SocketTimeouts) -> OpenEnvSocket:
        """Connect to a server. Raises ServerFull, EnvironmentUnavailable."""
        client = aiohttp.ClientSession(
            connector=connector_to([str(url)]),
            trace_configs=[no_redirects()],
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=waits.connect_s),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        try:
            async with asyncio.timeout(waits.connect_s):
                socket = await client.ws_connect(
                    url / "ws",
                    heartbeat=waits.ping_s,
                    max_msg_size=MOST_BYTES,
                    timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_S),
                )
            return cls(url, client, socket)
        except BaseException as error:
            await client.close()
            shown = mask_address(str(url))
            if isinstance(error, aiohttp.WSServerHandshakeError) and error.status in FULL_STATUSES:
                raise ServerFull(f"{shown}: HTTP {error.status}") from error
            if isinstance(error, TimeoutError):
                raise EnvironmentUnavailable(f"{shown}: no connection within {waits.connect_s:g} s") from error
            if isinstance(error, aiohttp.ClientError | OSError):
                raise EnvironmentUnavailable(f"{shown} cannot be reached: {type(error).__name__}: {error}") from error
            raise

    async def ask(self, kind: str, data: JsonObject | None = None, *, within_s: float) -> JsonObject:
        """Send a message and return the `data` of its answer.

        Raises ServerError, ServerFull, EnvironmentUnavailable if the connection is or gets lost.
        """
        message = {"type": kind} if data is None else {"type": kind, "data": data}
        try:
            async with asyncio.timeout(within_s):
                with contextlib.suppress(OSError, aiohttp.ClientError):  # then the reader ends, and that is the answer
                    await self._socket.send_str(exact_json.dumps(message).decode())
                answer = await self._answers.get()
        except TimeoutError:
            await self.close()
            raise EnvironmentUnavailable(f"{self._shown_url} did not answer `{kind}` within {within_s:g} s") from None
        if answer is None:
            self._answers.put_nowait(None)
            raise EnvironmentUnavailable(f"{self._shown_url}: the connection was lost before `{kind}` was answered")
        found = answer.get("data")
        if not isinstance(found, dict):
            raise ServerError("UNREADABLE", str(answer)[:500])
        if answer.get("type") == "error":
            raise _said(found)
        return found

    async def close(self) -> None:
        """End the session, in bounded time; a second call does nothing."""
        if self._client.closed:
            return
        try:
            with contextlib.suppress(OSError, aiohttp.ClientError, TimeoutError):
                async with asyncio.timeout(CLOSE_S):
                    if not self._socket.closed:
                        await self._socket.send_str('{"type":"close"}')
                    await asyncio.wait({self._reader})  # the server closes, and that ends the reader
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
            with contextlib.suppress(OSError, aiohttp.ClientError, TimeoutError):
                async with asyncio.timeout(CLOSE_S):
                    await self._socket.close()
        finally:
            self._reader.cancel()
            await self._client.close()

    async def _read(self) -> None:
        try:
            async for message in self._socket:
                if message.type is not aiohttp.WSMsgType.TEXT:
                    break
                read: Any = exact_json.loads(message.data)
                if self._answers.qsize() >= MOST_UNASKED:
                    break
                self._answers.put_nowait(read if isinstance(read, dict) else {})
        except ValueError:
            self._answers.put_nowait({})
        finally:
            self._answers.put_nowait(None)


async def begin(urls: Sequence[URL], reset: JsonObject, waits: SocketTimeouts) -> tuple[OpenEnvSocket, JsonObject]:
    """Open a session on one of the servers; return it and the result of its reset. Waits while all are full.

    Raises ServerError if the reset is refused, EnvironmentUnavailable if no server is reached or gets free.
    """
    order = random.sample(urls, len(urls))
    give_up_at = asyncio.get_running_loop().time() + waits.capacity_s
    wait_s = FIRST_WAIT_S
    while True:
        full: ServerFull | None = None
        away: EnvironmentUnavailable | None = None
        for url in order:
            try:
                return await _reset(url, reset, waits)
            except ServerFull as error:
                full = error
            except EnvironmentUnavailable as error:
                away = error
        if full is None:
            raise away or EnvironmentUnavailable("there are no servers")
        left_s = give_up_at - asyncio.get_running_loop().time()
        if left_s <= 0:
            raise EnvironmentUnavailable(f"no server had a free session within {waits.capacity_s:g} s: {full}")
        with waiting_for_capacity():
            await asyncio.sleep(min(left_s, wait_s * random.uniform(0.5, 1.5)))
        wait_s = min(2 * wait_s, LONGEST_WAIT_S)


async def _reset(url: URL, reset: JsonObject, waits: SocketTimeouts) -> tuple[OpenEnvSocket, JsonObject]:
    socket = await OpenEnvSocket.connect(url, waits)
    try:
        return socket, await socket.ask("reset", reset, within_s=waits.reset_s)
    except BaseException:
        await socket.close()
        raise


def _said(error: JsonObject) -> ServerError | ServerFull:
    code, message = str(error.get("code")), str(error.get("message"))
    if code == "CAPACITY_REACHED":
        return ServerFull(message)
    problems = error.get("errors")
    if isinstance(problems, list):
        places = [
            f"{'.'.join(map(str, each.get('loc') or ()))}: {each.get('msg')}"
            for each in problems
            if isinstance(each, dict)
        ]
        message = "; ".join(places) or message
    return ServerError(code, message[:1000])
