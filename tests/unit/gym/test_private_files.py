"""The data directory and its files are for their owner alone, whatever the umask and whatever was there."""

from __future__ import annotations

import logging
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from api.local.supervisor import LogFile
from gym.ids import RolloutRef
from gym.private_files import create_private, make_private
from gym.results.blobs import BlobStore
from gym.state.redis.data_dir import DataDirLock
from gym.state.redis.embedded import EmbeddedRedis


@pytest.fixture(autouse=True)
def _open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def open_to_others(folder: Path) -> dict[str, str]:
    """Return the paths of a folder, itself included, that give rights to others."""
    found = {str(path): stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.rglob("*"))}
    return {path: oct(mode) for path, mode in found.items() if mode & 0o077}


def test_a_directory_that_is_made_is_private_and_so_are_its_parents(tmp_path: Path) -> None:
    make_private(tmp_path / "one" / "two")
    assert open_to_others(tmp_path / "one") == {}


def test_a_data_directory_that_others_may_enter_is_corrected_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o755)
    with caplog.at_level(logging.WARNING):
        DataDirLock.take(data).release()
    assert open_to_others(data) == {}
    assert str(data) in caplog.text


def test_a_directory_for_all_is_left_so_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    with caplog.at_level(logging.WARNING):
        make_private(shared)
    assert stat.S_IMODE(shared.stat().st_mode) == 0o1777
    assert str(shared) in caplog.text


@pytest.mark.anyio
async def test_trajectories_are_private_even_where_their_folder_was_not(tmp_path: Path) -> None:
    root = tmp_path / "blobs"
    root.mkdir(mode=0o755)
    blobs = BlobStore(root, inline_bytes=1)
    value = await blobs.write(RolloutRef("b", 1, 2), 1, b"a trajectory")
    assert await blobs.read(value) == b"a trajectory"
    assert open_to_others(root) == {}
    await blobs.discard("b")
    assert open_to_others(root) == {}


def test_logs_and_exports_are_private(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    make_private(folder)
    log = LogFile(folder / "worker.log")
    log.write(b"line\n")
    log.close()
    create_private(folder / "results.jsonl").close()
    assert open_to_others(folder) == {}


def test_what_a_command_starts_makes_private_files(tmp_path: Path) -> None:
    """By the umask of `farm`, which its children inherit: also what Redis writes."""
    code = (
        "import os, sys, typer\n"
        "from api.cli import main\n"
        "app = typer.Typer()\n"
        "app.command()(lambda: os.mkdir(sys.argv[1]) or open(sys.argv[1] + '/file', 'w').close())\n"
        "main.build = lambda: app\n"
        "main.main([])\n"
    )
    made = tmp_path / "made"
    subprocess.run([sys.executable, "-c", code, str(made)], check=True, timeout=60)
    assert (made / "file").exists()
    assert open_to_others(made) == {}


def test_the_files_of_the_embedded_redis_are_out_of_reach(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o755)
    with EmbeddedRedis(data):
        assert stat.S_IMODE(data.stat().st_mode) == 0o700
        assert stat.S_IMODE((data / "redis").stat().st_mode) == 0o700
        assert stat.S_IMODE((data / "redis" / "redis.log").stat().st_mode) == 0o600
