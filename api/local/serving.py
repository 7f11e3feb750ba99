"""uvicorn server for a process that may be idle for hours, with requests that may wait for a minute."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from types import FrameType

import uvicorn

from api.shutdown import Shutdown

TICK_S = 1.0
TICKS = 10
"""uvicorn counts tenths of a second."""


class QuietServer(uvicorn.Server):
    """Server that checks once a second whether to stop, and at once after a signal.

    uvicorn's own server checks ten times a second.
    """

    _loop: asyncio.AbstractEventLoop | None = None

    def __init__(self, config: uvicorn.Config, shutdown: Shutdown) -> None:
        super().__init__(config)
        self._shutdown = shutdown

    async def main_loop(self) -> None:
        """Run until a signal."""
        self._loop, self._signalled = asyncio.get_running_loop(), asyncio.Event()
        counter = 0
        while not await self.on_tick(counter):
            counter += TICKS
            with suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self._signalled.wait()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle SIGTERM and SIGINT."""
        super().handle_exit(sig, frame)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._signalled.set)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End waiting requests, then let requests under way finish."""
        self._shutdown.begin()
        await super().shutdown(sockets)
