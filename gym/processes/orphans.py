"""What a process does when its parent dies."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1


def end_with_parent(sent: signal.Signals, *, niceness: int = 0, parent: int | None = None) -> Callable[[], None]:
    """What a child calls between fork and exec so that it gets `sent` when its parent dies, however that happens.

    The signal is sent when the thread that forked ends, so fork in the main thread. Outside Linux nothing is sent.
    `niceness` is added to the child's. `parent` is this process unless it is said.
    """
    if parent is None:
        parent = os.getpid()
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def tie() -> None:
        if niceness:
            os.nice(niceness)
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, int(sent), 0, 0, 0)
            if os.getppid() != parent:
                os.kill(os.getpid(), sent)

    return tie
