"""The process that runs environments with `isolation: process`, one session at a time.

Started by `gym.environments.hosting.processes`; the protocol is in `gym.environments.hosting.process_wire`. It ends
when its input ends, and is killed when the process above it dies, even if a method of an environment never returns. An
environment's prints go to the worker's log.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import pickle
import signal
import sys
from typing import Any, BinaryIO

from gym.environments.hosting.process_wire import HEAD_BYTES, pack_error, pack_result
from gym.environments.hosting.session import EnvironmentSession
from gym.environments.hosting.threads import EnvironmentThreads
from gym.environments.registry import EnvironmentType, load_source
from gym.environments.settings import EnvironmentEntry
from gym.environments.values import ValueBounds
from gym.errors import EnvironmentFailed
from gym.jsontypes import JsonObject
from gym.processes.process_tree import descendants

PR_SET_PDEATHSIG = 1
THREADS = 4


class HostedSession:
    """The open session, and the calls that run in it."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._threads = EnvironmentThreads(THREADS)
        self._session: EnvironmentSession | None = None
        self._loaded: dict[str, EnvironmentType] = {}
        self._calls: dict[int, asyncio.Task[None]] = {}

    def take(self, number: int, what: str, args: tuple[Any, ...]) -> None:
        """Start a call; `cancel` ends the call with its number."""
        if what == "cancel":
            if (call := self._calls.get(number)) is not None:
                call.cancel()
            return
        task = asyncio.get_running_loop().create_task(self._answer(number, what, args))
        self._calls[number] = task
        task.add_done_callback(lambda _: self._calls.pop(number, None))

    async def _answer(self, number: int, what: str, args: tuple[Any, ...]) -> None:
        try:
            answer = pack_result(number, await self._do(what, args))
        except asyncio.CancelledError:
            answer = pack_error(number, EnvironmentFailed("the call was cancelled"))
        except (Exception, SystemExit) as error:  # noqa: BLE001  reported to the worker, where it fails one rollout
            answer = pack_error(number, error)
        self._out.write(answer)
        self._out.flush()

    async def _do(self, what: str, args: tuple[Any, ...]) -> object:
        if what == "open":
            return await self._open(*args)
        session = self._session
        if session is None:
            raise EnvironmentFailed("no session is open in this process")
        match what:
            case "call_tool":
                return await session.call_tool(*args)
            case "observe":
                return await session.observe()
            case "step":
                return await session.step(*args)
            case "verify":
                return await session.verify(*args)
            case "close":
                self._session = None
                await session.close()
                return len(self._calls) == 1 and not self._threads.hung and descendants(os.getppid()) == [os.getpid()]
        raise EnvironmentFailed(f"there is no call {what!r}")

    async def _open(
        self,
        source: str | EnvironmentEntry,
        data: JsonObject,
        seed: int,
        close_timeout_s: float,
        bounds: ValueBounds,
    ) -> object:
        key = repr(source)
        if key not in self._loaded:
            self._loaded[key] = await asyncio.to_thread(load_source, source)
        self._session = EnvironmentSession(
            self._loaded[key],
            data,
            seed=seed,
            executor=self._threads,
            close_timeout_s=close_timeout_s,
            bounds=bounds,
        )
        await self._session.setup()
        return None


async def serve(given: BinaryIO, out: BinaryIO) -> None:
    """Serve calls until the input ends."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), given)
    served = HostedSession(out)
    with contextlib.suppress(asyncio.IncompleteReadError):
        while True:
            size = int.from_bytes(await reader.readexactly(HEAD_BYTES), "big")
            number, what, args = pickle.loads(await reader.readexactly(size))  # noqa: S301  the worker's own
            served.take(number, what, args)


def main() -> None:
    """Keep the pipes for the worker alone: 0 is empty for environments, and 1 goes where their errors go."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    given, out = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.close(nothing)
    with contextlib.suppress(BrokenPipeError):
        asyncio.run(serve(given, out))
    sys.stderr.flush()
    os._exit(0)  # an environment's thread must not keep the process alive
