"""The disk of a run's trajectories, which can be full.

As root it is a real file system of its own that is filled to its last byte; elsewhere the folder is made one in which
nothing can be written, by a file in its place.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path

SIZE_BYTES = 64 * 2**20
_FILLER = "filler"


class SmallDisk:
    """A file system at `folder`, which is made."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._aside = folder.with_name(f"{folder.name}-aside")
        self._mounted = False

    def attach(self) -> None:
        """Make the folder, and mount a file system of its own there where this process may."""
        self._folder.mkdir(mode=0o700)
        if os.geteuid() == 0:
            command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_BYTES},mode=0700", "tmpfs", str(self._folder)]
            self._mounted = subprocess.run(command, capture_output=True, timeout=30, check=False).returncode == 0

    def fill(self) -> str:
        """Let every write fail from now on; how."""
        if not self._mounted:
            self._folder.rename(self._aside)
            self._folder.write_text("a file, where a folder should be")
            return "nothing can be written to the disk"
        with contextlib.suppress(OSError), (self._folder / _FILLER).open("wb", buffering=0) as filler:
            for size in (2**20, 2**12, 1):
                with contextlib.suppress(OSError):
                    while filler.write(bytes(size)) == size:
                        pass
        return "the disk is full"

    def free(self) -> None:
        """Let writes succeed again."""
        if self._mounted:
            (self._folder / _FILLER).unlink()
        else:
            self._folder.unlink()
            self._aside.rename(self._folder)

    def detach(self) -> None:
        """Give the file system back."""
        if self._mounted:
            subprocess.run(["umount", "--lazy", str(self._folder)], capture_output=True, timeout=30, check=False)
            self._mounted = False
