"""Cleanup after killed processes: a file for each sandbox names its process and its owner.

A process is named by its id and its start time (`/proc/PID/stat`, field 22), so that a reused id is never taken for it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from pathlib import Path


def pid_directory() -> Path:
    """Return the directory that lists this user's sandboxes, shared by all farms of the user on this machine."""
    return Path(tempfile.gettempdir()) / f"rollout-farm-sandboxes-{os.geteuid()}"


def started_at(pid: int) -> str:
    """Return when a process started, in the kernel's ticks; empty if there is no such process."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def is_alive(name: str) -> bool:
    """Return whether the process that `PID.START` names still runs."""
    pid, _, start = name.partition(".")
    return pid.isdigit() and bool(start) and started_at(int(pid)) == start


def note(directory: Path, pid: int) -> Path:
    """Record `pid` as a sandbox of this process. Raises OSError if the directory is another user's."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if directory.stat().st_uid != os.geteuid() or directory.is_symlink():
        raise PermissionError(f"{directory} belongs to another user")
    owner = os.getpid()
    path = directory / f"{pid}.{started_at(pid)}.{owner}.{started_at(owner)}"
    path.touch()
    return path


def sweep_pid_files(directory: Path) -> int:
    """Kill the process groups of dead owners and forget ended ones. Returns the number killed."""
    killed = 0
    with contextlib.suppress(FileNotFoundError):
        for path in directory.iterdir():
            parts = path.name.split(".")
            if len(parts) != 4 or path.stat().st_uid != os.geteuid():
                continue
            sandbox, owner = ".".join(parts[:2]), ".".join(parts[2:])
            if is_alive(owner):
                continue
            if is_alive(sandbox):
                with contextlib.suppress(OSError):
                    os.killpg(int(parts[0]), signal.SIGKILL)
                    killed += 1
            path.unlink(missing_ok=True)
    return killed
