"""CPU seconds and memory of a tree of processes, by role. CPU is user plus system time, as the kernel counts it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress

import psutil

from api.bench.meter import cpu_of_s

ROLES = ("up", "api", "proxy", "dispatcher", "worker", "flower", "judge", "judge-worker", "judge-server")


class ProcessTree:
    """A process and all its descendants."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)

    def cpu_s(self) -> dict[str, float]:
        """Return CPU seconds so far, by role."""
        used: dict[str, float] = defaultdict(float)
        for process in self._all():
            with suppress(psutil.Error, OSError):
                used[_role(process)] += cpu_of_s(process.pid)
        return used

    def pss_bytes(self) -> dict[str, float]:
        """Return the proportional set size, by role: shared pages are counted once."""
        used: dict[str, float] = defaultdict(float)
        for process in self._all():
            with suppress(psutil.Error):
                used[_role(process)] += process.memory_full_info().pss
        return used

    def rss_bytes(self, role: str) -> int:
        """Return the resident memory of the processes of one role."""
        return sum(process.memory_info().rss for process in self._of(role))

    def pids(self, role: str) -> list[int]:
        """Return the processes of one role."""
        return [process.pid for process in self._of(role)]

    def count(self) -> int:
        """Return the number of processes."""
        return len(self._all())

    def _of(self, role: str) -> Iterator[psutil.Process]:
        """Return the processes of one role, without those that have just ended, such as Redis's rewriting fork."""
        for process in self._all():
            with suppress(psutil.Error):
                if _role(process) == role:
                    yield process

    def _all(self) -> list[psutil.Process]:
        return [self._root, *self._root.children(recursive=True)]


def _role(process: psutil.Process) -> str:
    words = process.cmdline()
    if "api.cli.fork_server" in words:
        return "fork-server"
    named = next((word for word in words if word in ROLES), None)
    if named is not None:
        return named
    return "redis" if any("redis" in word or "valkey" in word for word in words[:1]) else "other"
