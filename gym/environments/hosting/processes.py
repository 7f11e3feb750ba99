"""Processes that isolate a worker from environments: those that crash, use up a CPU, or never return.

Invariants. A process serves one session at a time and one environment all its life, so damage to itself harms no other.
It is reused only after a session that closed cleanly and left no program behind. At most `most` processes exist. Each
is started below `gym.processes.process_tree`, which kills all its descendants, also when the worker is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import sys
from pathlib import Path
from typing import Any

import orjson

from gym.environments.capacity import waiting_for_capacity
from gym.environments.hosting.process_wire import HEAD_BYTES, MOST_BYTES, pack_call
from gym.jsontypes import JsonObject
from gym.plain import exact_json
from gym.processes import process_tree
from gym.processes.subprocesses import environment_without_settings, start_process

END_S = 5.0
_START = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); "
    "from gym.environments.hosting.process_child import main; main()"
)


class ProcessGone(Exception):
    """Error for a process that ended, or could not be started; the text says how."""


class EnvironmentProcess:
    """A process of one environment."""

    def __init__(self, source: str, process: asyncio.subprocess.Process) -> None:
        self.source = source
        self._process = process
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[JsonObject]] = {}
        self._reader = asyncio.get_running_loop().create_task(self._read(), name="environment-process")

    @classmethod
    async def start(cls, source: str) -> EnvironmentProcess:
        """Start a process. Raises ProcessGone if that fails."""
        command = [sys.executable, str(Path(process_tree.__file__)), str(os.getpid())]
        command += [sys.executable, "-c", _START, orjson.dumps(sys.path).decode()]
        pipe = asyncio.subprocess.PIPE
        try:
            process = await start_process(command, stdin=pipe, stdout=pipe, environment=environment_without_settings())
        except OSError as error:
            raise ProcessGone(f"a process for it cannot be started: {error}") from error
        return cls(source, process)

    @property
    def gone(self) -> bool:
        """Whether the process takes no more calls."""
        return self._reader.done()

    @property
    def pid(self) -> int:
        """Process id at the top of its tree."""
        return self._process.pid

    async def call(self, what: str, *args: Any) -> JsonObject:
        """Return the answer to one call; several may run at once. Raises ProcessGone."""
        number = next(self._numbers)
        self._send(number, what, args)
        future = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            answer: JsonObject = await future
        except asyncio.CancelledError:
            with contextlib.suppress(ProcessGone):
                self._send(number, "cancel", ())
            raise
        finally:
            self._waiting.pop(number, None)
        return answer

    async def end(self) -> None:
        """Kill the process and its descendants, in bounded time."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            async with asyncio.timeout(END_S):
                await self._process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGKILL)
            await self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._reader.cancel()
        await asyncio.wait({self._reader})

    def _send(self, number: int, what: str, args: tuple[Any, ...]) -> None:
        stdin = self._process.stdin
        if self.gone or stdin is None or stdin.is_closing():
            raise ProcessGone(self._how())
        stdin.write(pack_call(number, what, args))

    def _how(self) -> str:
        code = self._process.returncode
        return "its process ended" if code is None else f"its process ended with code {code}"

    async def _read(self) -> None:
        stdout = self._process.stdout
        try:
            while stdout is not None:
                size = int.from_bytes(await stdout.readexactly(HEAD_BYTES), "big")
                if size > MOST_BYTES:
                    break
                answer: JsonObject = exact_json.loads(await stdout.readexactly(size))
                future = self._waiting.get(answer["id"])
                if future is not None and not future.done():
                    future.set_result(answer)
        except (asyncio.IncompleteReadError, OSError, ValueError, TypeError, KeyError):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(END_S):
                    await self._process.wait()
        finally:
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(ProcessGone(self._how()))


class EnvironmentProcesses:
    """Pool of the processes of one worker; lives on its event loop."""

    def __init__(self, most: int, *, keep: int = 2) -> None:
        self._keep = keep
        self._places = asyncio.Semaphore(most)
        self._idle: list[EnvironmentProcess] = []
        self._busy: set[EnvironmentProcess] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._killed = 0

    def load(self) -> JsonObject:
        """Return the load for a worker's description."""
        return {"busy": len(self._busy), "idle": len(self._idle), "killed": self._killed}

    async def take(self, source: str) -> EnvironmentProcess:
        """Return a process for one session of an environment, once there is capacity. Raises ProcessGone."""
        with waiting_for_capacity():
            await self._places.acquire()
        try:
            process = self._waiting_for(source)
            if process is None:
                process = await EnvironmentProcess.start(source)
        except BaseException:
            self._places.release()
            raise
        self._busy.add(process)
        return process

    def give_back(self, process: EnvironmentProcess, *, clean: bool) -> None:
        """Return a process to the pool.

        One whose session did not close cleanly is killed before its capacity is free.
        """
        if process not in self._busy:
            return
        self._busy.discard(process)
        if clean and not process.gone:
            self._idle.append(process)
            self._places.release()
            while len(self._idle) > self._keep:
                self._end(self._idle.pop(0))
        else:
            self._killed += 1
            self._end(process).add_done_callback(lambda _: self._places.release())

    async def close(self) -> None:
        """End all processes, in bounded time; callers that use one get ProcessGone."""
        for process in [*self._idle, *self._busy]:
            self._end(process)
        self._idle.clear()
        self._busy.clear()
        if self._ending:
            await asyncio.wait(self._ending)

    def _waiting_for(self, source: str) -> EnvironmentProcess | None:
        for process in [each for each in self._idle if each.gone]:
            self._idle.remove(process)
            self._end(process)
        found = next((each for each in reversed(self._idle) if each.source == source), None)
        if found is not None:
            self._idle.remove(found)
        return found

    def _end(self, process: EnvironmentProcess) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(process.end(), name="environment-process-end")
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        return task
