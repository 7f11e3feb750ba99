"""A program that runs another and ends everything that came of it. Standard library only; started as a file.

It adopts whatever its descendants leave behind (`PR_SET_CHILD_SUBREAPER`), so that a process cannot get away by a
session of its own or by the death of its parent. When the program has ended, or this one is told to end, or its parent
dies, all descendants are killed; then it exits as the program did. `process_tree.py PARENT PROGRAM ARGUMENT…`
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
LOOK_EVERY_S = 1.0
NOT_STARTED = 127


def descendants(root: int) -> list[int]:
    """All processes below one, as far as they can be seen at this moment."""
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
    """Kill every descendant and reap what comes here, in as many rounds as that takes."""
    while True:
        for pid in descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def run(argv: list[str]) -> int:
    """The exit status of the program, 128 and the signal where one ended it."""
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
