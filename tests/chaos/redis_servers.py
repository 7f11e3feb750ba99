"""Redis servers that lose their last writes: one that is put back to a copy, one whose lagging replica takes over.

Both are real server processes behind an address that stays the same, which the farm is given as `FARM_REDIS_URL`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from redis.asyncio import Redis

from gym.state.redis.embedded import EmbeddedRedis

POLL_S = 0.05
LINK_WITHIN_S = 30.0
CHUNK = 64 * 2**10

Read = asyncio.StreamReader
Write = asyncio.StreamWriter


class PutBack:
    """A server whose files are copied, and put back after it was killed: a restored backup, a truncated log."""

    def __init__(self, folder: Path) -> None:
        self._server = EmbeddedRedis(folder / "redis-alone")
        self._copy = folder / "redis-copy"

    async def start(self) -> str:
        """Start the server and return its address."""
        self._server.data_dir.mkdir(mode=0o700)
        await asyncio.to_thread(self._server.start)
        return self._server.url

    async def lose(self, seconds: float) -> None:
        """Lose all writes of the last so many seconds."""
        await asyncio.to_thread(shutil.copytree, self._server.folder, self._copy)
        await asyncio.sleep(seconds)
        _kill(self._server)
        await asyncio.to_thread(self._restore)

    async def stop(self) -> None:
        """End the server."""
        await asyncio.to_thread(self._server.stop)

    def _restore(self) -> None:
        self._server.stop()
        shutil.rmtree(self._server.folder)
        self._copy.rename(self._server.folder)
        self._server.start()


class Promotion:
    """A server and its replica behind one address; the replica is promoted without the last writes."""

    def __init__(self, folder: Path) -> None:
        self._primary = EmbeddedRedis(folder / "redis-primary")
        self._replica = EmbeddedRedis(folder / "redis-replica", password="of-the-replica")
        self._address = Forwarder()
        self._link = Forwarder()

    async def start(self) -> str:
        """Start both, connect them, and return the address."""
        for server in (self._primary, self._replica):
            server.data_dir.mkdir(mode=0o700)
            await asyncio.to_thread(server.start)
        port = await self._address.start(self._primary.port)
        link = await self._link.start(self._primary.port)
        password = urlsplit(self._primary.url).password
        async with Redis.from_url(self._replica.url) as replica:
            # after a promotion the farm goes on with the password that it has
            await replica.config_set("masterauth", password)
            await replica.replicaof("127.0.0.1", link)
            async with asyncio.timeout(LINK_WITHIN_S):
                while (await replica.info("replication")).get("master_link_status") != "up":  # noqa: ASYNC110  polled
                    await asyncio.sleep(POLL_S)
            await replica.config_set("requirepass", password)
        return f"redis://:{password}@127.0.0.1:{port}/0"

    async def lose(self, seconds: float) -> None:
        """Let the replica miss so many seconds of writes, kill the primary, and promote the replica."""
        self._link.hold()
        await asyncio.sleep(seconds)
        _kill(self._primary)
        await self._link.stop()
        replica = self._replica.url.replace("of-the-replica", str(urlsplit(self._primary.url).password))
        async with Redis.from_url(replica) as promoted:
            await promoted.replicaof("NO", "ONE")
        self._address.lead_to(self._replica.port)

    async def stop(self) -> None:
        """End both."""
        for forwarder in (self._address, self._link):
            await forwarder.stop()
        for server in (self._primary, self._replica):
            await asyncio.to_thread(server.stop)


class Forwarder:
    """A TCP address that leads to a port of this machine; bytes held back when it is stopped are lost."""

    def __init__(self) -> None:
        self._port = 0
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[Any]] = set()
        self._flows = asyncio.Event()
        self._flows.set()

    async def start(self, port: int) -> int:
        """Lead to a port; returns the port to connect to."""
        self._port = port
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        own: int = self._server.sockets[0].getsockname()[1]
        return own

    def hold(self) -> None:
        """Pass nothing on from now on."""
        self._flows.clear()

    def lead_to(self, port: int) -> None:
        """Lead new connections to another port, and cut those that there are."""
        self._port = port
        for connection in list(self._open):
            connection.cancel()

    async def stop(self) -> None:
        """Cut all connections and take no more."""
        if self._server is not None:
            self._server.close()
        await asyncio.sleep(0)  # those that were taken just now have begun
        connections = list(self._open)
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _serve(self, reader: Read, writer: Write) -> None:
        task = asyncio.current_task()
        beyond: Write | None = None
        try:
            if task is not None:
                self._open.add(task)
            there, beyond = await asyncio.open_connection("127.0.0.1", self._port)
            await _first_end(self._copy(reader, beyond), self._copy(there, writer))
        except (OSError, asyncio.CancelledError):
            pass  # to those at both ends it is as if the server had closed
        finally:
            if task is not None:
                self._open.discard(task)
            for end in (writer, beyond):
                if end is not None:
                    end.transport.abort()
                    with contextlib.suppress(OSError):
                        await end.wait_closed()

    async def _copy(self, reader: Read, writer: Write) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(CHUNK):
                await self._flows.wait()
                writer.write(chunk)
                await writer.drain()


async def _first_end(*copies: Awaitable[None]) -> None:
    tasks = [asyncio.ensure_future(copy) for copy in copies]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _kill(server: EmbeddedRedis) -> None:
    if server.pid is not None:
        os.kill(server.pid, signal.SIGKILL)


Forgetful = Callable[[Path], PutBack | Promotion]
"""Makes the Redis of a run in its folder."""
