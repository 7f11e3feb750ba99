"""Files and directories that only their owner may read."""

from __future__ import annotations

import logging
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, cast

_OPEN = {"action": "directory_open"}
_LOG = logging.getLogger(__name__)


def make_private(directory: Path) -> None:
    """Make a directory that only its owner may enter; correct or warn about one that others may enter.

    Missing parents are made with the same mode.
    """
    for path in (*reversed(directory.parents), directory):
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
    mode = stat.S_IMODE(directory.stat().st_mode)
    if mode & 0o077 == 0:
        return
    reason = "it is a directory for all, by its sticky bit"
    if not mode & stat.S_ISVTX:
        try:
            directory.chmod(mode & 0o700)
        except OSError as error:
            reason = error.strerror or "refused"
        else:
            _LOG.warning("others could enter %s (mode %o); they cannot any more", directory, mode, extra=_OPEN)
            return
    _LOG.warning(
        "others may enter %s (mode %o), which is left so (%s): give a directory of the farm's own, for trajectories "
        "lie there",
        directory,
        mode,
        reason,
        extra=_OPEN,
    )


def append_private(path: Path) -> BinaryIO:
    """Open a file to append to, unbuffered; a new file can be read by its owner alone."""
    return cast("BinaryIO", open(path, "ab", buffering=0, opener=_private))


def create_private(path: Path) -> BinaryIO:
    """Open a file to overwrite; a new file can be read by its owner alone."""
    return open(path, "wb", opener=_private)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, in one step."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    part.replace(path)
