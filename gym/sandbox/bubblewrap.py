"""Sandboxes by bubblewrap (`bwrap`): new namespaces of every kind, a read-only root, no network.

If root starts it, it runs as `nobody`: the kernel exempts root from the limit on processes, in any namespace. Then the
interpreter must be readable for all users. bwrap is killed with its parent; remains are still swept
(`gym.sandbox.left_over`).
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from gym.sandbox.base import Launch, Mount, SandboxUnavailable
from gym.sandbox.cgroup import find_place, sweep_control_groups
from gym.sandbox.left_over import sweep_pid_files
from gym.sandbox.limits import SandboxLimits

BOOT = "import sys;r=sys.stdin.buffer.raw;n=b''\nwhile n[-1:]!=b'\\n':n+=r.read(1) or sys.exit()\ns=b''\n"
BOOT += "while len(s)<int(n):s+=r.read(int(n)-len(s)) or sys.exit()\n"
BOOT += "g={'__name__':'inside'};exec(compile(s,'inside','exec'),g);g['serve']()"
_NOBODY = "65534"
_ETC = ("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "localtime")


class Bubblewrap:
    """Provider of bubblewrap sandboxes.

    `python` is the interpreter inside. The default is the farm's own, or the system's if that cannot be read.
    """

    name = "bubblewrap"

    def __init__(self, *, command: str = "bwrap", python: str | None = None) -> None:
        self._command = command
        self._python = python

    def start(self, label: str, limits: SandboxLimits, filter_fd: int, mounts: Sequence[Mount] = ()) -> Launch:
        """Build the command.

        Raises SandboxUnavailable without `bwrap`, or without an interpreter that can be used inside.
        """
        bwrap = shutil.which(self._command)
        if bwrap is None:
            raise SandboxUnavailable(f"there is no {self._command}; install the package bubblewrap")
        python = self._python or _readable_python()
        argv = [*_as_nobody(), bwrap, "--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc"]
        argv += ["--unshare-uts", "--unshare-cgroup", "--uid", _NOBODY, "--gid", _NOBODY, "--hostname", label]
        argv += ["--die-with-parent", "--new-session", "--as-pid-1", "--cap-drop", "ALL", "--clearenv"]
        argv += ["--seccomp", str(filter_fd), *_system_files(python)]
        argv += ["--proc", "/proc", "--ro-bind", "/dev/null", "/proc/cmdline", "--dev", "/dev"]
        argv += [
            "--dev-bind",
            "/dev/full",
            "/dev/zero",
        ]  # a mapping of it would be memory of no process
        for place in ("/work", "/tmp", "/dev/shm"):  # noqa: S108  the sandbox's own
            argv += ["--size", str(limits.work_bytes), "--tmpfs", place]
        for mount in mounts:
            argv += ["--ro-bind", mount.source, mount.target]
        argv += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/work"]
        for name, value in (("PATH", f"{Path(python).parent}:/usr/bin:/bin"), ("HOME", "/work"), ("LANG", "C.UTF-8")):
            argv += ["--setenv", name, value]
        return Launch(
            argv=[*argv, python, "-I", "-S", "-c", BOOT], environment={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        )

    def sweep(self, directory: Path) -> int:
        """See SandboxProvider."""
        killed = sweep_pid_files(directory)
        sweep_control_groups(find_place())
        return killed


def _as_nobody() -> list[str]:
    if os.geteuid() != 0:
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise SandboxUnavailable("started as root and there is no setpriv; install util-linux or use another user")
    return [setpriv, "--reuid", _NOBODY, "--regid", _NOBODY, "--clear-groups", "--no-new-privs"]


def _readable_python() -> str:
    """Return the first interpreter that the sandbox's user may use."""
    names = (Path(sys.base_prefix) / "bin" / "python3", Path("/usr/bin/python3"), Path("/usr/local/bin/python3"))
    for name in names:
        if name.exists() and (os.geteuid() != 0 or all(_open_to_all(each) for each in (name, *name.resolve().parents))):
            return str(name.resolve())
    raise SandboxUnavailable(f"no Python that everybody may read among {', '.join(map(str, names))}; install python3")


def _open_to_all(path: Path) -> bool:
    return bool(path.stat().st_mode & stat.S_IXOTH)


def _system_files(python: str) -> Iterator[str]:
    yield from ("--ro-bind", "/usr", "/usr")
    if not python.startswith("/usr/local/"):
        yield from ("--tmpfs", "/usr/local", "--remount-ro", "/usr/local")
    for name in ("/bin", "/sbin", "/lib", "/lib32", "/lib64"):
        place = Path(name)
        if place.is_symlink():
            yield from ("--symlink", str(place.readlink()), name)
        elif place.is_dir():
            yield from ("--ro-bind", name, name)
    for name in _ETC:
        yield from ("--ro-bind-try", f"/etc/{name}", f"/etc/{name}")
    if not python.startswith("/usr/"):
        prefix = str(Path(python).parent.parent)
        yield from ("--ro-bind", prefix, prefix)
