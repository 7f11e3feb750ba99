"""Where trajectories lie: inside Redis when small, else in a file with a pointer in Redis.

A value starts with a byte that says which: `i` inline and the packed trajectory, `f` and a path below the root. Files
are written beside their place and renamed, so a reader never sees half of one.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from gym.errors import Unavailable
from gym.ids import RolloutRef


class BlobStore:
    """Packs and reads trajectories. Without a root everything is kept inline."""

    def __init__(self, root: Path | None, *, inline_bytes: int) -> None:
        self._root = root
        self._inline_bytes = inline_bytes

    async def write(self, rollout: RolloutRef, attempt: int, packed: bytes) -> bytes:
        """The value to keep in Redis for a packed trajectory."""
        if self._root is None or len(packed) <= self._inline_bytes:
            return b"i" + packed
        # a batch's own folder, its rows spread over many, since large folders are slow
        name = f"{rollout.batch_id.replace(':', '_')}/{rollout.row % 256:02x}/{rollout.row}.{rollout.sample}.{attempt}"
        await asyncio.to_thread(_write, self._root / name, packed)
        return b"f" + name.encode()

    async def read(self, value: bytes | None) -> bytes | None:
        """The packed trajectory, `None` where there was none. Raises Unavailable where its file cannot be read."""
        if not value:
            return None
        if value[:1] == b"i":
            return value[1:]
        if self._root is None:
            raise Unavailable("blob_unreachable", "this trajectory lies in the data directory of another machine")
        path = self._root / value[1:].decode()
        try:
            return await asyncio.to_thread(path.read_bytes)
        except OSError as error:
            raise Unavailable(
                "blob_unreachable", f"the trajectory file {path.name} cannot be read: {error.strerror}", retry_after_s=5
            ) from error


def _write(path: Path, packed: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    beside.write_bytes(packed)
    beside.rename(path)
