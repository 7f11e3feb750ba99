"""Children of the fork server (`api.cli.fork_server`), as the supervisor sees them.

Invariant: a child that was ordered and is no longer wanted ends before it has begun. If the server fails in any way, it
is abandoned for good, and children are started as new processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from gym.errors import FarmError
from gym.processes.process_tree import end_with_parent

ROLES = frozenset({"worker", "judge-worker", "dispatcher", "proxy", "api", "flower"})
"""Commands of `farm` that the fork server can run; `api.cli.fork_server.MODULES` lists the imports of each."""
ORDER_S = 60.0
"""From an order to its child; the first child of a role waits for the role's imports."""
END_S = 5.0
BURY_S = 0.1
LABEL = "forks-for-farm-up"  # long enough for the command lines that replace the server's
_PR_SET_CHILD_SUBREAPER = 36


class NotForked(FarmError):
    """There is no fork server any more, or it did not follow its protocol."""


class Process(Protocol):
    """A process that was started here, as `asyncio.subprocess.Process`."""

    @property
    def pid(self) -> int: ...
    @property
    def returncode(self) -> int | None: ...
    async def wait(self) -> int: ...
    def send_signal(self, signal: int, /) -> None:
        """Send a signal. Raises ProcessLookupError if the process has ended."""


class ForkedProcess:
    """A child that the fork server forked."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        _when_ended(pid, self._reap)

    async def wait(self) -> int:
        """Return the exit status; a negative one is a signal."""
        return await asyncio.shield(self._ended)

    def send_signal(self, sent: int, /) -> None:
        """Send a signal. Raises ProcessLookupError if the process has ended."""
        if self.returncode is not None:
            raise ProcessLookupError
        os.kill(self.pid, sent)

    def _reap(self) -> None:
        try:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        except ChildProcessError:
            self.returncode = -signal.SIGKILL  # another part of the process has reaped it
        self._ended.set_result(self.returncode)


class ForkServer:
    """Fork server of one supervisor, used from its event loop."""

    def __init__(self, control: socket.socket, process: subprocess.Popen[bytes]) -> None:
        self._control: socket.socket | None = control
        self._process = process
        self._turn = asyncio.Lock()

    @classmethod
    def start(cls) -> ForkServer | None:
        """Start a server, which begins to import. Call in the main thread. Return None if the system cannot do it."""
        if sys.platform != "linux" or not hasattr(os, "pidfd_open"):
            return None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with theirs:
            process = subprocess.Popen(  # noqa: S603 - this program
                [sys.executable, "-m", "api.cli.fork_server", LABEL],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                # settings are passed with an order
                env={name: value for name, value in os.environ.items() if not name.startswith("FARM_")},
                start_new_session=True,
                preexec_fn=end_with_parent(signal.SIGKILL),  # noqa: PLW1509 - a system call and nothing else
            )
        return cls(ours, process)

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return self._process.pid

    async def fork(
        self,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str],
        output: int,
        orphan_signal: signal.Signals,
        niceness: int,
    ) -> ForkedProcess:
        """Start `farm ARGUMENTS` as a child of this process that leads a session. Raises NotForked."""
        order = {
            "arguments": list(arguments),
            "environment": dict(environment),
            "parent": os.getpid(),
            "orphan_signal": int(orphan_signal),
            "niceness": niceness,
        }
        async with self._turn:
            if self._control is None:
                raise NotForked("the fork server has been abandoned")
            try:
                return await self._order(self._control, json.dumps(order).encode(), output)
            except (OSError, ValueError, TimeoutError) as error:
                self.give_up()
                raise NotForked(f"the fork server sent an unexpected reply: {error or type(error).__name__}") from None
            except BaseException:
                self.give_up()
                raise

    async def _order(self, control: socket.socket, order: bytes, output: int) -> ForkedProcess:
        with contextlib.ExitStack() as opened:
            text = os.memfd_create("order", os.MFD_CLOEXEC)
            opened.callback(os.close, text)
            os.write(text, order)
            os.lseek(text, 0, os.SEEK_SET)
            wait, go = os.pipe()
            opened.callback(os.close, wait)
            opened.callback(os.close, go)
            socket.send_fds(control, [b"order"], [text, output, wait])
            if await self._answer(control) != b"ready":
                raise ValueError("the fork server did not become ready")
            before, ours = _children(), set[int]()
            _adopt_orphans(True)  # any process may have sent it, so wait no longer than this takes
            try:
                control.send(b"fork")
                process = ForkedProcess(int(await self._answer(control)))
                ours.add(process.pid)
            finally:
                _adopt_orphans(False)
                for stray in _children() - before - ours:
                    _bury(stray)
            os.write(go, b"g")
            return process

    async def _answer(self, control: socket.socket) -> bytes:
        return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(control, 16), ORDER_S)

    def give_up(self) -> None:
        """Send no more orders."""
        if self._control is not None:
            self._control.close()
            self._control = None
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    def stop(self) -> None:
        """Stop the server; the children are not its own."""
        self.give_up()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_S)


def _children() -> set[int]:
    """Return the children of the main thread, which is the one that adopts."""
    try:
        return set(map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()))
    except OSError:
        return set()


def _when_ended(pid: int, then: Callable[[], object]) -> None:
    """Call a function in the loop once a process has ended. Raises ProcessLookupError if no such process exists."""
    loop = asyncio.get_running_loop()
    descriptor = os.pidfd_open(pid)

    def ended() -> None:
        loop.remove_reader(descriptor)
        os.close(descriptor)
        then()

    loop.add_reader(descriptor, ended)


def _bury(stray: int) -> None:
    """Reap an adopted process once it has ended; by then, a waiter for one of our own children has been served."""
    loop = asyncio.get_running_loop()

    def reap() -> None:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(stray, os.WNOHANG)

    with contextlib.suppress(ProcessLookupError):
        _when_ended(stray, lambda: loop.call_later(BURY_S, reap))


@contextlib.contextmanager
def fork_server_running() -> Iterator[ForkServer | None]:
    """Run a fork server for the duration of the block; yield None if the system cannot do it."""
    server = ForkServer.start()
    try:
        yield server
    finally:
        if server is not None:
            server.stop()


def _adopt_orphans(whether: bool) -> None:
    """Start or stop adopting orphaned descendants. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, int(whether), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
