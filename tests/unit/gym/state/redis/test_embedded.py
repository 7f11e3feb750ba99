"""The embedded Redis server: a real process in a temporary directory."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from redis import Redis

from gym.errors import SettingsError
from gym.state.redis import embedded
from gym.state.redis.data_dir import DataDirLock
from gym.state.redis.embedded import EmbeddedRedis, ServerState, embedded_url, find_server, server_state


def until(condition: Callable[[], bool], what: str) -> None:
    give_up_at = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < give_up_at, f"not within 20 s: {what}"
        time.sleep(0.01)


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_what_was_written_survives_kill_9_and_a_restart(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as server:
        with Redis.from_url(server.url) as redis:
            redis.set("kept", "yes")
            until(lambda: redis.info("persistence")["aof_pending_bio_fsync"] == 0, "the write to the log")
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
    with EmbeddedRedis(tmp_path) as server, Redis.from_url(server.url) as redis:
        assert redis.get("kept") == b"yes"


def test_the_server_persists_and_never_evicts(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as server, Redis.from_url(server.url) as redis:
        asked = ("appendonly", "appendfsync", "maxmemory-policy", "save", "bind")
        assert [redis.config_get(name)[name] for name in asked] == ["yes", "no", "noeviction", "", "127.0.0.1"]


def test_the_server_refuses_a_client_without_the_password(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as server:
        assert server.state() is ServerState.READY
        assert server_state(f"redis://127.0.0.1:{server.port}/0") is ServerState.AWAY


def test_the_password_is_kept_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as server:
        first = server.url.rpartition("@")[0]
        assert server.pid is not None
        assert not any(first.rpartition(":")[2] in part for part in psutil.Process(server.pid).cmdline())
    for name in ("password", "redis.conf", "url"):
        assert stat.S_IMODE((tmp_path / "redis" / name).stat().st_mode) == 0o600
    with EmbeddedRedis(tmp_path) as server:
        assert server.url.rpartition("@")[0] == first


def test_a_second_farm_on_the_same_data_directory_is_refused(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path), pytest.raises(SettingsError, match=rf"in use by process {os.getpid()}.*--data-dir"):
        EmbeddedRedis(tmp_path).start()


def test_the_lock_is_held_until_the_server_of_a_dead_farm_has_ended(tmp_path: Path) -> None:
    lock = DataDirLock.take(tmp_path)
    reads = [sys.executable, "-S", "-c", "import sys; sys.stdin.read()"]
    with subprocess.Popen(reads, stdin=subprocess.PIPE, pass_fds=(lock.fd,)) as heir:
        lock.release()
        (tmp_path / "lock").write_text("999999999")
        with pytest.raises(SettingsError, match="in use by its Redis server"):
            DataDirLock.take(tmp_path, timeout_s=0.05)
        assert heir.stdin is not None
        heir.stdin.close()
        heir.wait(20)
    DataDirLock.take(tmp_path, timeout_s=0.05).release()


def test_a_server_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    program = (
        "import pathlib, sys, time\n"
        "from gym.state.redis.embedded import EmbeddedRedis\n"
        "print(EmbeddedRedis(pathlib.Path(sys.argv[1])).start().pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert not gone(pid)
        parent.kill()
    until(lambda: gone(pid), "the server's end")
    with EmbeddedRedis(tmp_path):
        pass


def test_a_server_that_cannot_start_is_an_error_with_its_log(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path / "one") as taken:
        with pytest.raises(SettingsError, match=r"(?s)its log ends with.*in use"):
            EmbeddedRedis(tmp_path / "two", port=taken.port).start()
        DataDirLock.take(tmp_path / "two").release()


def test_what_the_server_wrote_can_be_put_on_the_disk_from_outside(tmp_path: Path) -> None:
    assert EmbeddedRedis(tmp_path).sync() == 0
    with EmbeddedRedis(tmp_path) as server, Redis.from_url(server.url) as redis:
        redis.set("kept", "1")
        assert server.sync() >= 1


def test_processes_beside_the_server_find_it_by_its_data_directory(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as server:
        assert embedded_url(tmp_path, timeout_s=5) == server.url
    with pytest.raises(SettingsError, match="farm redis"):
        embedded_url(tmp_path, timeout_s=0.0)


def fake_server(folder: Path, version: str) -> None:
    path = folder / "redis-server"
    path.write_text(f"#!/bin/sh\necho 'Redis server v={version} sha=00000000:0'\n")
    path.chmod(0o755)


def test_a_server_on_the_path_is_preferred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_server(tmp_path, "7.0.15")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert find_server() == embedded.ServerBinary(tmp_path / "redis-server", "7.0.15")


def test_a_server_that_is_too_old_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_server(tmp_path, "6.0.16")
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    assert find_server().path != tmp_path / "redis-server"
