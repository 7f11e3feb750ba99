"""Storage of trajectories: inside Redis when small, else in a file with a pointer in Redis.

The first byte of a value is its kind: `i` is followed by the packed trajectory; `f` by the size, a path below the root
and the CRC-32 of the content (values of older farms end with the path). Files are written under a temporary name and
renamed, so a reader never sees half of one. Each batch has its own folder. Removal renames it into the trash at once
and deletes it in bounded steps. Only the owner of the files may read them, under any umask.

Invariant: a file that is missing or damaged affects its own rollout only. A store that does not answer is waited for,
within bounds; then its files count as missing.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import time
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gym.errors import ResultUnreadable, Unavailable
from gym.ids import RolloutRef
from gym.private_files import make_private

TRASH = ".trash"
_POINTER = re.compile(rb"f([0-9]{1,15}) ([A-Za-z0-9._~/-]{1,400})(?: ([0-9a-f]{8}))?")


PATIENCE_S = 30.0
RETRY_AFTER_S = 5.0
MOST_REMEMBERED = 10_000


class BlobStore:
    """Packs and reads trajectories. Without a root everything is kept inline.

    While the store is away, a file is requested again for `patience_s`.
    """

    def __init__(self, root: Path | None, *, inline_bytes: int, patience_s: float = PATIENCE_S) -> None:
        self._root = root
        self._inline_bytes = inline_bytes
        self._patience_s = patience_s
        self._away_since: dict[str, float] = {}

    async def write(self, rollout: RolloutRef, attempt: int, packed: bytes, *, part: str = "") -> bytes:
        """Return the value to keep in Redis for a packed trajectory, or for another `part` of an attempt.

        Raises OSError if its file cannot be written; nothing of it remains then.
        """
        if self._root is None or len(packed) <= self._inline_bytes:
            return b"i" + packed
        # rows are spread over many folders, since large ones are slow
        place = f"{rollout.row % 256:02x}/{rollout.row}.{rollout.sample}.{attempt}"
        name = f"{_folder(rollout.batch_id)}/{place}"
        if part:
            name = f"{name}.{part}"
        await asyncio.to_thread(_write, self._root, self._root / name, packed)
        return b"f%d %s %08x" % (len(packed), name.encode(), zlib.crc32(packed))

    async def read(self, value: bytes | None) -> bytes | None:
        """Return the packed trajectory, `None` if there was none.

        Raises ResultUnreadable if it is missing or damaged, Unavailable while its store is away.
        """
        [packed] = await self.read_many([value])
        if isinstance(packed, ResultUnreadable):
            raise packed
        return packed

    async def read_many(self, values: Sequence[bytes | None]) -> list[bytes | ResultUnreadable | None]:
        """Return what `read` gives for each, with one thread for all of their files; unreadable ones as errors.

        Raises Unavailable while the store is away.
        """
        if any(value and value[:1] != b"i" for value in values):
            return await asyncio.to_thread(self._read_all, values)
        return self._read_all(values)

    def _read_all(self, values: Sequence[bytes | None]) -> list[bytes | ResultUnreadable | None]:
        found: list[bytes | ResultUnreadable | None] = []
        away: Unavailable | None = None
        for value in values:
            if not value or value[:1] == b"i":
                found.append(value[1:] if value else None)
                continue
            packed = self._read_file(value)
            if isinstance(packed, Unavailable):
                away = away or packed  # the others are tried all the same, so that the patience of each starts now
            else:
                found.append(packed)
        if away is not None:
            raise away
        return found

    def _read_file(self, value: bytes) -> bytes | ResultUnreadable | Unavailable:
        pointer = _Pointer.parse(value)
        if pointer is None:
            return ResultUnreadable("the pointer to the trajectory is damaged")
        if self._root is None:
            return ResultUnreadable("the trajectory lies in a data directory, and this process has none")
        path = f"{self._root}/{pointer.path}"
        try:
            with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - a Path costs as much as the reading
                packed = file.read()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            if self._root.is_dir():
                return ResultUnreadable(f"the trajectory file {pointer.path} is not here: {error.strerror}")
            return self._away(path, str(self._root), error)
        except OSError as error:
            return self._away(path, path, error)
        if self._away_since:
            self._away_since.pop(path, None)
            self._away_since.pop(str(self._root), None)
        if not pointer.fits(packed):
            return ResultUnreadable(f"the trajectory file {pointer.path} is damaged")
        return packed

    def _away(self, path: str, what: str, error: OSError) -> ResultUnreadable | Unavailable:
        """Return Unavailable for a while after `what` was found to be away, then give the file up."""
        now = time.monotonic()
        if len(self._away_since) >= MOST_REMEMBERED:
            self._away_since.clear()
        since = self._away_since.setdefault(what, now)
        name = path.rpartition("/")[2]
        if now - since >= self._patience_s:
            return ResultUnreadable(f"the trajectory file {name} cannot be read: {error.strerror}")
        return Unavailable(
            "blob_unreachable",
            f"the trajectory file {name} cannot be read for now: {error.strerror}",
            retry_after_s=min(RETRY_AFTER_S, self._patience_s),
        )

    async def discard(self, batch_id: str) -> bool:
        """Move a batch's files to the trash, for `empty_trash` to delete. Return whether there were any."""
        return self._root is not None and await asyncio.to_thread(_discard, self._root, _folder(batch_id))

    async def empty_trash(self, most: int) -> int:
        """Delete up to `most` discarded files and return their number."""
        return 0 if self._root is None else await asyncio.to_thread(_empty, self._root / TRASH, most)


@dataclass(frozen=True, slots=True)
class _Pointer:
    """Pointer in Redis to a file; `checksum` is None in values of an older farm."""

    size_bytes: int
    path: str
    checksum: int | None

    @classmethod
    def parse(cls, value: bytes) -> _Pointer | None:
        found = _POINTER.fullmatch(value)
        if found is None or b".." in found[2].split(b"/"):
            return None
        size, path, checksum = found.groups()
        return cls(int(size), path.decode(), None if checksum is None else int(checksum, 16))

    def fits(self, packed: bytes) -> bool:
        if len(packed) != self.size_bytes:
            return False
        return self.checksum is None or zlib.crc32(packed) == self.checksum


def _folder(batch_id: str) -> str:
    """Return a folder name that is unique to the batch, for any id, `..` included."""
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
        with suppress(OSError):  # report the first fault
            beside.unlink(missing_ok=True)
        raise


def _create(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
