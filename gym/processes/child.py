"""A child process of a worker, for packages whose pins clash with the farm's: JSON lines in and out.

It starts when it is first needed and again after it has died. Its input closes when the worker ends, and so it ends
too. Safe to use from any thread. The meaning of a line is up to the caller and the child; a line with `rollout` goes to
that rollout's queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any

from gym.errors import EnvironmentFailed, EnvironmentUnavailable
from gym.jsontypes import JsonObject
from gym.plain import exact_json
from gym.processes.subprocesses import environment_without_settings

STOP_S = 5.0


class JsonLinesChild:
    """A process whose first line must be `{"ready": {…}}` or `{"failed": "why"}`."""

    def __init__(self, command: Sequence[str], *, what: str) -> None:
        self._command = list(command)
        self._what = what
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._ready: JsonObject = {}
        self._outgoing: SimpleQueue[bytes | None] = SimpleQueue()
        self._waiting: dict[str, tuple[subprocess.Popen[bytes] | None, Callable[[JsonObject], None]]] = {}

    def start(self, *, within_s: float) -> JsonObject:
        """Start the process if it does not run, and return its `ready`. Blocks. Raises EnvironmentUnavailable."""
        with self._lock:
            if self._process is not None and self._process.poll() is None:
                return self._ready
            if self._process is not None:
                _end(self._process)
            try:
                process = subprocess.Popen(  # noqa: S603  the command is the settings'
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env=environment_without_settings(),
                    start_new_session=True,
                )
            except OSError as error:
                raise EnvironmentUnavailable(f"{self._what} cannot be started: {error}") from error
            timer = threading.Timer(within_s, process.kill)
            timer.daemon = True
            timer.start()
            first = process.stdout.readline() if process.stdout is not None else b""
            timer.cancel()
            said = _read(first)
            if "ready" not in said:
                _end(process)
                why = said.get("failed") or f"it was not ready within {within_s:g} s, or died; see the worker's log"
                raise EnvironmentUnavailable(f"{self._what}: {why}")
            self._process, self._ready, self._outgoing = process, said["ready"], SimpleQueue()
            for work in (self._read, _write):
                threading.Thread(target=work, args=(process, self._outgoing), name=self._what, daemon=True).start()
            return self._ready

    def close(self) -> None:
        """End the process, in bounded time; the next `start` makes another."""
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            self._outgoing.put(None)
            _end(process)

    def say(self, **line: Any) -> None:
        """Queue a line for the process without waiting. Raises EnvironmentUnavailable if the process is gone."""
        process = self._process
        if process is None or process.poll() is not None:
            raise EnvironmentUnavailable(f"{self._what}: its process is gone")
        self._outgoing.put(exact_json.dumps(line) + b"\n")

    def listen(self, rollout: str, take: Callable[[JsonObject], None]) -> None:
        """Pass the lines of a rollout to a function, which is called in another thread.

        The last line is `{"gone": why}` if the process that runs now dies.
        """
        self._waiting[rollout] = (self._process, take)

    def forget(self, rollout: str) -> None:
        """Drop the rollout's lines from now on."""
        self._waiting.pop(rollout, None)

    def _read(self, process: subprocess.Popen[bytes], outgoing: SimpleQueue[bytes | None]) -> None:
        with contextlib.suppress(ValueError, OSError):
            for line in process.stdout or ():
                said = _read(line)
                waiting = self._waiting.get(str(said.get("rollout")))
                if waiting is not None:
                    waiting[1](said)
        outgoing.put(None)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
        gone: JsonObject = {"gone": f"{self._what}: its process ended, with code {process.returncode}"}
        for mine, take in list(self._waiting.values()):
            if mine is process:
                take(gone)


class ChildConversation:
    """Conversation of one rollout with its child, on the rollout's event loop."""

    def __init__(self, child: JsonLinesChild, rollout: str) -> None:
        self._child = child
        self._rollout = rollout
        self._lines: asyncio.Queue[JsonObject] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def take(line: JsonObject) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._lines.put_nowait, line)

        child.listen(rollout, take)

    async def ask(self, **line: Any) -> JsonObject:
        """Send a line and wait for the next one. Raises EnvironmentUnavailable, EnvironmentFailed."""
        self._child.say(rollout=self._rollout, **line)
        answer = await self._lines.get()
        if "gone" in answer:
            raise EnvironmentUnavailable(answer["gone"])
        if "fault" in answer:
            raise EnvironmentFailed(answer["fault"])
        return answer

    def close(self) -> None:
        """Tell the child that the rollout is over, and drop its lines."""
        self._child.forget(self._rollout)
        with contextlib.suppress(EnvironmentUnavailable):
            self._child.say(rollout=self._rollout, do="close")


def _read(line: bytes) -> JsonObject:
    """Parse a line.

    For one that JSON cannot hold, as NaN, return a fault of the rollout that it names; others continue.
    """
    with contextlib.suppress(ValueError):
        said = exact_json.loads(line)
        return said if isinstance(said, dict) else {}
    rollout = None
    with contextlib.suppress(ValueError, RecursionError):
        said = json.loads(line)
        rollout = said.get("rollout") if isinstance(said, dict) else None
    return {"rollout": rollout, "fault": "it said something that JSON cannot hold, such as NaN or half a character"}


def _write(process: subprocess.Popen[bytes], outgoing: SimpleQueue[bytes | None]) -> None:
    """Write queued lines in a thread, since a child that stops reading must not block the caller."""
    with contextlib.suppress(OSError, ValueError):
        while process.stdin is not None and (line := outgoing.get()) is not None:
            process.stdin.write(line)
            process.stdin.flush()


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        with contextlib.suppress(OSError, ValueError):
            process.stdout.close()
