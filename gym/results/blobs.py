"""Where trajectories lie: inside Redis when small, else in a file with a pointer in Redis.

A value starts with a byte that says which: `i` inline and the packed trajectory, `f`, the size and a path below the
root. Files are written beside their place and renamed, so a reader never sees half of one. Each batch has a folder of
its own, which goes as a whole: renamed into the trash at once, deleted in bounded steps. Only the owner of the files
may read them, whatever the umask.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from gym.errors import Unavailable
from gym.ids import RolloutRef
from gym.state.data_dir import make_private

TRASH = ".trash"


class BlobStore:
    """Packs and reads trajectories. Without a root everything is kept inline."""

    def __init__(self, root: Path | None, *, inline_bytes: int) -> None:
        self._root = root
        self._inline_bytes = inline_bytes

    async def write(self, rollout: RolloutRef, attempt: int, packed: bytes, *, part: str = "") -> bytes:
        """The value to keep in Redis for a packed trajectory, or for another `part` of what an attempt left.

        Raises OSError where its file cannot be written; nothing of it is left then.
        """
        if self._root is None or len(packed) <= self._inline_bytes:
            return b"i" + packed
        # rows are spread over many folders, since large ones are slow
        place = f"{rollout.row % 256:02x}/{rollout.row}.{rollout.sample}.{attempt}"
        name = f"{_folder(rollout.batch_id)}/{place}"
        if part:
            name = f"{name}.{part}"
        await asyncio.to_thread(_write, self._root, self._root / name, packed)
        return b"f%d %s" % (len(packed), name.encode())

    async def read(self, value: bytes | None) -> bytes | None:
        """The packed trajectory, `None` where there was none. Raises Unavailable where its file cannot be read."""
        [packed] = await self.read_many([value])
        return packed

    async def read_many(self, values: Sequence[bytes | None]) -> list[bytes | None]:
        """As `read` of each, with one thread for all of their files."""
        if any(value and value[:1] != b"i" for value in values):
            return await asyncio.to_thread(self._read_all, values)
        return self._read_all(values)

    def _read_all(self, values: Sequence[bytes | None]) -> list[bytes | None]:
        return [None if not value else value[1:] if value[:1] == b"i" else self._read_file(value) for value in values]

    def _read_file(self, value: bytes) -> bytes:
        if self._root is None:
            raise Unavailable("blob_unreachable", "this trajectory lies in the data directory of another machine")
        path = f"{self._root}/{value.decode().partition(' ')[2]}"
        try:
            with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - a Path costs as much as the reading
                return file.read()
        except OSError as error:
            name = path.rpartition("/")[2]
            raise Unavailable(
                "blob_unreachable", f"the trajectory file {name} cannot be read: {error.strerror}", retry_after_s=5
            ) from error

    async def discard(self, batch_id: str) -> bool:
        """Put a batch's files out of reach, to be deleted by `empty_trash`; whether there were any."""
        return self._root is not None and await asyncio.to_thread(_discard, self._root, _folder(batch_id))

    async def empty_trash(self, most: int) -> int:
        """Delete up to `most` discarded files: how many were."""
        return 0 if self._root is None else await asyncio.to_thread(_empty, self._root / TRASH, most)


def _folder(batch_id: str) -> str:
    """A name that no other batch has, for any id: `..` is one, too."""
    return "b-" + batch_id.replace(":", "~")


def _discard(root: Path, folder: str) -> bool:
    trash = root / TRASH
    try:
        (root / folder).stat()
        trash.mkdir(mode=0o700, exist_ok=True)
        (root / folder).rename(trash / f"{folder}.{secrets.token_hex(4)}")
    except FileNotFoundError:
        return False
    return True


def _empty(trash: Path, most: int) -> int:
    deleted = 0
    for folder, _, files in os.walk(trash, topdown=False):
        for name in files:
            if deleted >= most:
                return deleted
            Path(folder, name).unlink(missing_ok=True)
            deleted += 1
        if Path(folder) != trash:
            Path(folder).rmdir()
    return deleted


def _write(root: Path, path: Path, packed: bytes) -> None:
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        try:
            file = _create(beside)
        except FileNotFoundError:
            make_private(root)
            for folder in (path.parent.parent, path.parent):
                folder.mkdir(mode=0o700, exist_ok=True)
            file = _create(beside)
        with os.fdopen(file, "wb") as opened:
            opened.write(packed)
        beside.rename(path)
    except OSError:
        with suppress(OSError):  # the first fault is the one to tell
            beside.unlink(missing_ok=True)
        raise


def _create(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
