"""Control groups (cgroup v2) for sandboxes that are not containers: the kernel's own bound on memory and processes.

A group can be made if the worker may write to its own group, or the one above it, and that group delegates `memory` and
`pids`. Otherwise only the sums of `gym.sandbox.usage` apply. A group's name holds its owner's process id, so that the
remains of a killed worker can be told from groups in use.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
from pathlib import Path

from gym.sandbox.left_over import is_alive, started_at
from gym.sandbox.limits import SandboxLimits

ROOT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")
PREFIX = "rollout-farm-"
_CONTROLLERS = {"memory", "pids"}
_NOT_THE_PROGRAMS = 4  # processes of the sandbox itself: bwrap, process 1 and their helpers during start-up
_REMOVE_TRIES, _REMOVE_PAUSE_S = 100, 0.02

logger = logging.getLogger(__name__)


class ControlGroup:
    """Control group of one sandbox, made by `new_control_group`."""

    def __init__(self, path: Path, processes_fd: int) -> None:
        self._path = path
        self._processes_fd = processes_fd

    def enter(self) -> None:
        """Move this process into the group. Call it between fork and exec; `holds` says whether it worked."""
        with contextlib.suppress(OSError):
            os.write(self._processes_fd, b"0")

    def holds(self, pid: int) -> bool:
        """Return whether a process is in the group."""
        try:
            return str(pid) in (self._path / "cgroup.procs").read_text().split()
        except OSError:
            return False

    def started(self) -> None:
        """Close the file that `enter` needs. A second call does nothing."""
        if self._processes_fd >= 0:
            os.close(self._processes_fd)
            self._processes_fd = -1

    async def remove(self) -> None:
        """Kill the group's processes and remove it once the kernel has released them."""
        self.started()
        for _ in range(_REMOVE_TRIES):
            if remove(self._path):
                return
            await asyncio.sleep(_REMOVE_PAUSE_S)
        logger.warning("the control group %s cannot be removed", self._path, extra={"action": "scope_left"})


def find_place(root: Path = ROOT, own: Path = OWN) -> Path | None:
    """Return the group in which new groups can be made."""
    try:
        name = next(line[3:] for line in own.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return None
    group = root / name.strip("/")
    for place in (group, group.parent):
        if place.is_relative_to(root) and _gives_controllers(place):
            return place
    return None


def _gives_controllers(place: Path) -> bool:
    try:
        given = (place / "cgroup.subtree_control").read_text().split()
    except OSError:
        return False
    return set(given) >= _CONTROLLERS and os.access(place, os.W_OK) and os.access(place / "cgroup.procs", os.W_OK)


def new_control_group(limits: SandboxLimits, place: Path | None) -> ControlGroup | None:
    """Make a group with these limits. Returns None if that is not possible."""
    if place is None:
        return None
    path = place / f"{PREFIX}{os.getpid()}.{started_at(os.getpid())}-{secrets.token_hex(8)}"
    try:
        path.mkdir()
        (path / "memory.max").write_text(str(limits.memory_bytes + 3 * limits.work_bytes))
        (path / "pids.max").write_text(str(limits.processes + _NOT_THE_PROGRAMS))
        with contextlib.suppress(OSError):  # a kernel without swap accounting
            (path / "memory.swap.max").write_text("0")
        return ControlGroup(path, os.open(path / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC))
    except OSError as error:
        logger.warning("no control group for a sandbox: %s", error, extra={"action": "no_scope"})
        remove(path)
        return None


def sweep_control_groups(place: Path | None) -> int:
    """Remove the empty groups of dead owners, whose processes the kernel has ended. Returns the number removed."""
    if place is None:
        return 0
    left = [each for each in place.glob(f"{PREFIX}*-*") if not is_alive(each.name[len(PREFIX) :].rpartition("-")[0])]
    return sum(_remove_empty(each) for each in left)


def remove(path: Path) -> bool:
    """Kill the processes of a group and remove it. Returns whether it is gone."""
    with contextlib.suppress(OSError), (path / "cgroup.kill").open("r+") as file:
        file.write("1")
    return _remove_empty(path)


def _remove_empty(path: Path) -> bool:
    try:
        path.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
