"""Resource usage of a sandbox's processes, measured by its first process. Standard library only.

Memory is that of the processes, their page tables, the sandbox's files and, by an upper bound, their socket buffers.
Shared memory outside files is refused (`gym.sandbox.seccomp`), so every byte belongs to a process or a file.
"""

from __future__ import annotations

import contextlib
import os
import resource
from typing import NamedTuple

PLACES = ("/work", "/tmp", "/dev/shm")  # noqa: S108  the sandbox's own
FILE_BYTES = 1024  # of kernel memory for an empty file: an inode and a directory entry
SOCKET_BYTES = 224 * 1024  # the kernel's default send buffer, and one message over it


class Usage(NamedTuple):
    """Usage of all processes except the first one."""

    processes: int
    memory_bytes: int
    cpu_s: float
    files: int


def look() -> Usage:
    """Measure everything once; this takes some 0.1 ms and a little for each process."""
    processes, memory, ticks = 0, 0, 0
    for name in os.listdir("/proc"):  # noqa: PTH208  hot
        if not name.isdigit() or name == "1":
            continue
        processes += 1
        with contextlib.suppress(OSError, ValueError, IndexError):
            with open(f"/proc/{name}/status", "rb") as file:  # noqa: PTH123  hot
                for line in file:
                    if line.startswith((b"RssAnon:", b"VmPTE:")):
                        memory += int(line.split()[1]) * 1024
            with open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123  hot
                ticks += sum(int(part) for part in file.read().rpartition(b")")[2].split()[11:15])
    reaped = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = ticks / os.sysconf("SC_CLK_TCK") + reaped.ru_utime + reaped.ru_stime
    file_bytes, files = files_in_use()
    memory += file_bytes + files * FILE_BYTES + _sockets() * SOCKET_BYTES
    return Usage(processes, memory, cpu_s, files)


def files_in_use() -> tuple[int, int]:
    """Return the bytes and the inodes in use on the sandbox's own file systems."""
    used_bytes, inodes = 0, 0
    for place in PLACES:
        with contextlib.suppress(OSError):
            found = os.statvfs(place)
            if found.f_files:
                used_bytes += (found.f_blocks - found.f_bfree) * found.f_frsize
                inodes += found.f_files - found.f_ffree
    return used_bytes, inodes


def _sockets() -> int:
    """Return the number of Unix sockets, including those in flight in a message."""
    try:
        with open("/proc/net/unix", "rb") as file:  # noqa: PTH123  hot
            return max(0, file.read().count(b"\n") - 1)
    except OSError:
        return 0
