"""Version of the stored data, in Redis and in the data directory: written, read, and refused if it is newer."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gym.errors import SettingsError
from gym.state.redis.data_dir import DataDirLock
from gym.state.redis.eviction import watch_for_eviction
from gym.state.redis.format import FORMAT, require_data_format, require_format
from gym.state.redis.store import Store

pytestmark = pytest.mark.anyio


async def test_a_redis_is_marked_and_an_older_farms_data_is_read_as_it_is(store: Store, redis_url: str) -> None:
    await store.redis.zadd(store.keys.batches, {"old": 1})
    assert require_format(redis_url, "farm")
    assert require_format(redis_url, "farm")
    assert int(await store.redis.get(store.keys.format)) == FORMAT
    assert await store.redis.zcard(store.keys.batches) == 1


@pytest.mark.parametrize("stored", [b"two", b"", b"-1", b"\xff\xfe", b"1.5", b'{"format":1}'])
async def test_a_version_that_cannot_be_read_is_refused_and_the_way_out_is_named(
    store: Store, redis_url: str, stored: bytes
) -> None:
    await store.redis.set(store.keys.format, stored)
    with pytest.raises(SettingsError, match="delete the key farm:format"):
        require_format(redis_url, "farm")
    assert await store.redis.get(store.keys.format) == stored


async def test_a_version_of_another_type_is_refused(store: Store, redis_url: str) -> None:
    await store.redis.lpush(store.keys.format, "1")
    with pytest.raises(SettingsError, match="no readable format version"):
        require_format(redis_url, "farm")


async def test_a_newer_farms_data_is_refused_under_its_own_prefix_only(store: Store, redis_url: str) -> None:
    await store.redis.set(store.keys.format, FORMAT + 1)
    with pytest.raises(SettingsError, match="data of a newer farm"):
        require_format(redis_url, "farm")
    assert require_format(redis_url, "other")


def test_a_redis_that_is_away_is_asked_again_later() -> None:
    assert not require_format("redis://127.0.0.1:1/0", "farm")


async def test_a_process_that_started_without_redis_ends_when_it_finds_newer_data(
    store: Store, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.redis.set(store.keys.format, FORMAT + 1)
    ended: list[int] = []
    monkeypatch.setattr("os.kill", lambda _, number: ended.append(number))
    await watch_for_eviction(redis_url, "farm")
    assert len(ended) == 1


def test_a_data_directory_is_marked_by_its_first_farm(tmp_path: Path) -> None:
    require_data_format(tmp_path / "absent")
    assert not (tmp_path / "absent").exists()
    DataDirLock.take(tmp_path / "new").release()
    assert (tmp_path / "new" / "format").read_text() == f"{FORMAT}\n"


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_text("two"),
        lambda file: file.write_bytes(b"\xff"),
        lambda file: file.write_text(""),
        lambda file: file.mkdir(),
        lambda file: file.write_text("9" * 5000),
    ],
    ids=["text", "not UTF-8", "empty", "a folder", "too long"],
)
def test_a_data_directory_with_another_version_is_refused_and_given_back(
    tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    damage(tmp_path / "format")
    for _ in range(2):
        with pytest.raises(SettingsError, match="format"):
            DataDirLock.take(tmp_path)


@pytest.mark.parametrize("role", ["api", "dispatcher", "worker", "judge-worker", "proxy"])
async def test_every_process_refuses_a_newer_farms_redis_in_one_line(
    store: Store, redis_url: str, tmp_path: Path, role: str
) -> None:
    await store.redis.set(store.keys.format, FORMAT + 1)
    _refused(role, "--redis-url", redis_url, "--data-dir", str(tmp_path))


@pytest.mark.parametrize("role", ["up", "redis"])
def test_a_newer_farms_data_directory_is_refused_in_one_line(tmp_path: Path, role: str) -> None:
    (tmp_path / "format").write_text(f"{FORMAT + 1}\n")
    _refused(role, "--data-dir", str(tmp_path))


def _refused(*arguments: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "api.cli.main", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    said = " ".join(ended.stderr.split())
    assert ended.returncode == 2, said
    assert f"data of a newer farm (format {FORMAT + 1}, this farm reads up to {FORMAT})" in said
    assert "Traceback" not in said
