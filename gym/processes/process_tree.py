"""Process trees that cannot outlive their parent. Standard library only, since it is also started as a file.

`end_with_parent` ties one child to its parent. As a program, `process_tree.py PARENT PROGRAM ARGUMENT…` runs another
program and adopts the orphans among its descendants (`PR_SET_CHILD_SUBREAPER`). So no descendant escapes by starting a
session or by the death of its parent. All are killed when the program ends, when this process gets a signal to end, or
when its parent dies. The exit status is the program's.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
LOOK_EVERY_S = 1.0
NOT_STARTED = 127


def end_with_parent(sent: signal.Signals, *, niceness: int = 0, parent: int | None = None) -> Callable[[], None]:
    """Return a function for a child to call between fork and exec: it gets `sent` when its parent dies.

    The signal is sent when the thread that forked ends, so fork in the main thread. Outside Linux nothing is sent.
    `niceness` is added to the child's. `parent` is this process by default.
    """
    if parent is None:
        parent = os.getpid()
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def tie() -> None:
        if niceness:
            os.nice(niceness)
        if libc is not None:
            libc.prctl(PR_SET_PDEATHSIG, int(sent), 0, 0, 0)
            if os.getppid() != parent:
                os.kill(os.getpid(), sent)

    return tie


def descendants(root: int) -> list[int]:
    """Return all processes below one, as far as they are visible at this moment."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208  hot
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123  hot
                parent = int(file.read().rpartition(b")")[2].split()[1])
                children.setdefault(parent, []).append(int(name))
    found, look = [], [root]
    while look:
        below = children.get(look.pop(), [])
        found += below
        look += below
    return found


def end_all() -> None:
    """Kill every descendant and reap adopted ones, in as many rounds as that takes."""
    while True:
        for pid in descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def run(argv: list[str]) -> int:
    """Run the program; return its exit status, or 128 plus the signal that ended it."""
    waited_for = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, waited_for)
    main = os.fork()
    if main == 0:
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, waited_for)
            os.execvp(argv[0], argv)  # noqa: S606  no shell is wanted
        except OSError as error:
            os.write(2, f"{argv[0]}: {error.strerror}\n".encode())
        os._exit(NOT_STARTED)
    status = None
    while status is None:
        told = signal.sigtimedwait(waited_for, LOOK_EVERY_S)
        if told is not None and told.si_signo != signal.SIGCHLD:
            break
        while True:
            pid, ended = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            if pid == main:
                status = os.waitstatus_to_exitcode(ended)
                break
    end_all()
    if status is None:
        return 128 + signal.SIGTERM
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != int(sys.argv[1]):
        sys.exit(NOT_STARTED)
    sys.exit(run(sys.argv[2:]))
