"""Trajectories in files: their location and removal."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from gym.errors import ResultUnreadable, Unavailable
from gym.ids import RolloutRef
from gym.results.blobs import BlobStore

pytestmark = pytest.mark.anyio


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data" / "blobs"


def files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


async def test_small_ones_stay_inline_and_large_ones_are_pointed_to(root: Path) -> None:
    blobs = BlobStore(root, inline_bytes=4)
    small = await blobs.write(RolloutRef("b", 0, 0), 1, b"1234")
    large = await blobs.write(RolloutRef("b", 0, 1), 1, b"12345")
    assert (small, large[:3], len(files(root))) == (b"i1234", b"f5 ", 1)
    assert [await blobs.read(small), await blobs.read(large)] == [b"1234", b"12345"]


@pytest.mark.parametrize("other", ["a_b", "a.b", "..", "."])
async def test_batches_do_not_share_a_folder_whatever_they_are_called(root: Path, other: str) -> None:
    blobs = BlobStore(root, inline_bytes=0)
    kept = await blobs.write(RolloutRef("a:b", 0, 0), 1, b"one")
    gone = await blobs.write(RolloutRef(other, 0, 0), 1, b"two")
    assert await blobs.discard(other)
    assert await blobs.read(kept) == b"one"
    with pytest.raises(ResultUnreadable):
        await blobs.read(gone)
    assert all(path.is_relative_to(root) for path in files(root.parent.parent))


async def test_what_was_discarded_is_deleted_in_bounded_steps(root: Path) -> None:
    blobs = BlobStore(root, inline_bytes=0)
    for row in range(5):
        await blobs.write(RolloutRef("b", row, 0), 1, b"x")
    assert await blobs.discard("b")
    assert not await blobs.discard("b")
    assert [await blobs.empty_trash(2) for _ in range(4)] == [2, 2, 1, 0]
    assert files(root) == []


async def test_a_discarded_batch_may_come_again_under_its_name(root: Path) -> None:
    blobs = BlobStore(root, inline_bytes=0)
    await blobs.write(RolloutRef("b", 0, 0), 1, b"old")
    await blobs.discard("b")
    again = await blobs.write(RolloutRef("b", 0, 0), 1, b"new")
    await blobs.empty_trash(10)
    assert await blobs.read(again) == b"new"


async def test_a_file_that_is_missing_or_damaged_is_named_and_its_neighbours_are_read(root: Path) -> None:
    blobs = BlobStore(root, inline_bytes=0)
    values = [await blobs.write(RolloutRef("b", row, 0), 1, b"content") for row in range(5)]
    gone, cut, changed, folder = (root / value.split(b" ")[1].decode() for value in values[1:])
    gone.unlink()
    cut.write_bytes(b"cont")
    changed.write_bytes(b"CONTENT")
    folder.unlink()
    folder.mkdir()
    first, *rest = await blobs.read_many(values)
    assert first == b"content"
    assert [type(each) for each in rest] == [ResultUnreadable] * 4


async def test_a_store_that_is_away_is_waited_for_once_and_not_once_for_each_file(root: Path) -> None:
    blobs = BlobStore(root, inline_bytes=0, patience_s=0.05)
    values = [await blobs.write(RolloutRef("b", row, 0), 1, b"content") for row in range(3)]
    elsewhere = await anyio.Path(root).rename(root.with_name("elsewhere"))
    with pytest.raises(Unavailable) as raised:
        await blobs.read_many(values[:1])
    assert raised.value.code == "blob_unreachable"
    while True:
        try:
            found = await blobs.read_many(values)
            break
        except Unavailable:
            await anyio.sleep(0.01)
    assert [type(each) for each in found] == [ResultUnreadable] * 3
    await elsewhere.rename(root)
    assert await blobs.read_many(values) == [b"content"] * 3


async def test_a_pointer_of_an_older_farm_has_no_checksum_and_is_read(root: Path) -> None:
    blobs = BlobStore(root, inline_bytes=0)
    value = await blobs.write(RolloutRef("b", 0, 0), 1, b"content")
    assert await blobs.read(value.rpartition(b" ")[0]) == b"content"
