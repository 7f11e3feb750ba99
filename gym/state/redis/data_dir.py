"""The data directory: its lock, and the writing of files that others must not read.

Invariant: one farm at a time has a data directory. The lock is held by the process that took it and by every process
that inherits the open lock file. So a new farm cannot start a second Redis on the same files, even when the old farm
was killed and its server is still writing.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import IO, Self

from gym.errors import SettingsError
from gym.private_files import _private, make_private
from gym.state.redis.format import require_data_format

LOCK_TIMEOUT_S = 10.0
POLL_S = 0.02


class DataDirLock:
    """Lock of a data directory, held until `release` and by every process that inherits `fd`."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    @property
    def fd(self) -> int:
        """File descriptor of the lock file."""
        return self._file.fileno()

    @classmethod
    def take(cls, data_dir: Path, timeout_s: float = LOCK_TIMEOUT_S) -> Self:
        """Make the directory if it is missing, and lock it.

        Waits up to `timeout_s` for processes that a killed farm left. Raises SettingsError if a running farm has it, or
        its data is of a newer one.
        """
        make_private(data_dir)
        file = os.fdopen(_private(str(data_dir / "lock"), os.O_RDWR | os.O_CREAT | os.O_APPEND), "a+", encoding="utf-8")
        give_up_at = time.monotonic() + timeout_s
        while not _lock(file):
            file.seek(0)
            holder = file.read().strip()
            alive = holder.isdecimal() and _is_alive(int(holder))
            if alive or time.monotonic() >= give_up_at:
                file.close()
                raise SettingsError(
                    f"the data directory {data_dir} is in use by {'process ' + holder if alive else 'its Redis server'}"
                    f": stop that farm, or give another directory with --data-dir"
                )
            time.sleep(POLL_S)
        try:
            require_data_format(data_dir)
        except SettingsError:
            file.close()
            raise
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        return cls(file)

    def release(self) -> None:
        """Release the lock; a process that inherited it keeps it."""
        self._file.close()


def _lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
