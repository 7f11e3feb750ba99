"""Start of child processes that inherit only the named descriptors and variables.

Invariant: a child has the three standard streams, the descriptors in `keep` and no other. Neither event loop ensures
that: uvloop leaves the child's ends of its pipes open under their old numbers, and other threads open files meanwhile.
`subprocess.Popen` closes every descriptor that it should not pass, so code without an event loop may use it directly.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

SETTINGS_PREFIX = "FARM_"  # settings may hold passwords and keys
_CLOSE_RANGE = 436  # the same number on every architecture
_CLOSE_RANGE_CLOEXEC = 4
_LAST = 0xFFFFFFFF
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


async def start_process(
    argv: Sequence[str | Path],
    *,
    environment: Mapping[str, str],
    stdin: int | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
    directory: Path | None = None,
    keep: Collection[int] = (),
    before_exec: Callable[[], None] | None = None,
) -> asyncio.subprocess.Process:
    """Start a program as the leader of a new session. Raises OSError if it cannot be started."""
    kept = frozenset(keep)

    def prepare() -> None:
        if before_exec is not None:
            before_exec()
        close_on_exec(kept)

    return await asyncio.create_subprocess_exec(
        *argv,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        env=dict(environment),
        cwd=directory,
        pass_fds=tuple(kept),
        start_new_session=True,
        preexec_fn=prepare,
    )


def close_on_exec(keep: Collection[int] = ()) -> None:
    """Close every descriptor but the standard streams and `keep` when this process runs another program."""
    if _LIBC is None or _LIBC.syscall(_CLOSE_RANGE, 3, _LAST, _CLOSE_RANGE_CLOEXEC) != 0:
        for name in os.listdir("/dev/fd"):  # noqa: PTH208  between fork and exec
            if int(name) > 2:
                with contextlib.suppress(OSError):
                    os.set_inheritable(int(name), False)
    for fd in keep:
        os.set_inheritable(fd, True)


def environment_without_settings() -> dict[str, str]:
    """Return the environment without the farm's settings: PATH, HOME and the like."""
    return {name: value for name, value in os.environ.items() if not name.startswith(SETTINGS_PREFIX)}
