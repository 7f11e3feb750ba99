"""Liveness checks of a process, over a socket that it listens on.

Invariant: an answer needs the process alone, neither Redis nor a file system. The socket is abstract (Linux), so it
leaves nothing behind and ends with its process. A blocked event loop does not answer.

Imports the standard library alone, since a health check starts a new process every few seconds.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

ALIVE = b"alive\n"
MOST_BYTES = 1000
_PREFIX = "rollout-farm"


class NotAliveError(Exception):
    """Error for a role whose processes do not answer, or report a problem."""


async def serve_liveness(role: str, problem: Callable[[], str] = lambda: "") -> asyncio.Server | None:
    """Answer health checks on the running event loop; `problem` describes the current problem, empty if there is none.

    Returns `None` on systems without abstract sockets.
    """

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(_answer(problem))
        with suppress(OSError):
            await writer.drain()
        writer.close()

    listener = _listen(role)
    return None if listener is None else await asyncio.start_unix_server(answer, sock=listener)


def serve_liveness_in_thread(role: str, problem: Callable[[], str]) -> None:
    """Answer health checks in a thread, for a process without an event loop, until it ends."""
    listener = _listen(role)
    if listener is not None:
        threading.Thread(target=_answer_all, args=(listener, problem), name="liveness", daemon=True).start()


class Heartbeat:
    """The time since a loop's last iteration, reported as a problem once it is too long."""

    def __init__(self, most_s: float) -> None:
        self._most_s = most_s
        self._turned_at = time.monotonic()

    def turn(self) -> None:
        """Record an iteration of the loop."""
        self._turned_at = time.monotonic()

    def problem(self) -> str:
        """Return the problem, or an empty text."""
        still_s = time.monotonic() - self._turned_at
        return f"its loop has stood still for {still_s:.0f} s" if still_s > self._most_s else ""


def check_liveness(role: str, *, timeout_s: float) -> None:
    """Return if a process of the role answers in this container. Raises NotAliveError."""
    found = list(_names(role))
    problems = []
    for name in found:
        problem = _ask(name, timeout_s)
        if not problem:
            return
        problems.append(problem)
    raise NotAliveError("; ".join(problems) or f"no {role} runs in this container")


def _listen(role: str) -> socket.socket | None:
    if sys.platform != "linux":
        return None
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(f"\0{_place(role)}{os.getpid()}")
    listener.listen(16)
    return listener


def _place(role: str) -> str:
    """Return the prefix of this container's socket names.

    Containers may share a network, and so its abstract sockets.
    """
    return f"{_PREFIX}/{role}/{Path('/proc/self/ns/pid').readlink()}/"


def _names(role: str) -> Iterator[str]:
    beginning = f"@{_place(role)}"
    for line in Path("/proc/net/unix").read_text(errors="replace").splitlines():
        name = line.rpartition(" ")[2]
        if name.startswith(beginning):
            yield f"\0{name[1:]}"


def _answer(problem: Callable[[], str]) -> bytes:
    said = problem()
    return said.encode()[:MOST_BYTES] if said else ALIVE


def _answer_all(listener: socket.socket, problem: Callable[[], str]) -> None:
    while True:
        connection, _ = listener.accept()
        with connection, suppress(OSError):
            connection.sendall(_answer(problem))


def _ask(name: str, timeout_s: float) -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.settimeout(timeout_s)
        try:
            asking.connect(name)
            said = asking.recv(MOST_BYTES)
        except TimeoutError:
            return f"its event loop did not answer within {timeout_s:g} s"
        except OSError as error:
            return f"it does not answer: {error}"
    return "" if said == ALIVE else said.decode(errors="replace") or "it closed the connection"
