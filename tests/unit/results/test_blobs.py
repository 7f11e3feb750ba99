"""Trajectories in files: where they lie, and how they go."""

from __future__ import annotations

from pathlib import Path

import pytest

from gym.errors import ResultUnreadable
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
