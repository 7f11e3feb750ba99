"""`farm judge` as a process, and a Ray cluster that another process has started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

WAIT_S = 150.0
HERE = Path(__file__).parent
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}


def _without_ray() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("FARM_", "RAY_"))}


@dataclass(frozen=True, slots=True)
class RunningPool:
    """A `farm judge` and its state in Redis."""

    process: subprocess.Popen[bytes]
    log: Path
    redis: Redis

    def status(self) -> dict[str, Any]:
        """Return the output of `farm judge status`; it has no judges while no pool runs."""
        stored = self.redis.get("farm:judge-pool")
        found: dict[str, Any] = json.loads(stored) if isinstance(stored, bytes) else {"judges": {}}
        return found

    def ready(self, judge: str) -> list[dict[str, Any]]:
        """The judge's replicas that can be asked."""
        there = self.status()["judges"].get(judge, {"replicas": []})["replicas"]
        return [one for one in there if one["state"] == "ready"]

    def until(self, found: Callable[[], Any]) -> Any:
        """Wait until the condition is true and return its value."""
        give_up_at = time.monotonic() + WAIT_S
        while not (seen := found()):
            assert time.monotonic() < give_up_at, self.log.read_text()[-4000:]
            time.sleep(0.1)
        return seen

    def ended(self) -> tuple[int, str]:
        """Return its exit status and all its output."""
        return self.process.wait(WAIT_S), self.log.read_text()


EndFamily = Callable[[subprocess.Popen[bytes], float], None]
RunPool = Callable[[dict[str, Any]], AbstractContextManager[RunningPool]]


@pytest.fixture
def run_pool(tmp_path: Path, redis_url: str, end_family: EndFamily) -> RunPool:
    """Runs `farm judge` with the section `pool` of the settings; nothing of it may be left at the end."""
    return lambda pool: _run_pool(tmp_path, redis_url, pool, end_family)


@contextmanager
def _run_pool(tmp_path: Path, redis_url: str, pool: dict[str, Any], end_family: EndFamily) -> Iterator[RunningPool]:
    environment = pool.pop("environment", {})
    given = {f"FARM_POOL_{name.upper()}": v if isinstance(v, str) else json.dumps(v) for name, v in pool.items()}
    given["FARM_JUDGES"] = json.dumps({judge: {"kind": "embedding"} for judge in pool["judges"]})
    log = tmp_path / "judge.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "api.cli.main", "judge", "--data-dir", str(tmp_path), "--redis-url", redis_url],
            stdout=out,
            stderr=out,
            env={**_without_ray(), "HOME": str(tmp_path), **given, **environment},
            start_new_session=True,
        )
    try:
        with Redis.from_url(redis_url) as redis:
            yield RunningPool(process, log, redis)
    finally:
        end_family(process, 20)


@dataclass(frozen=True, slots=True)
class SomebodysRay:
    """A cluster of another process; somebody_elses.py lists the requests that it answers."""

    process: subprocess.Popen[str]
    address: str
    home: Path

    def ask(self, line: str) -> str:
        """Return its answer to a line."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def actors(self) -> dict[str, list[str]]:
        """The names of its actors by their namespaces."""
        found: dict[str, list[str]] = {}
        for actor in json.loads(self.ask("actors")):
            found.setdefault(actor["namespace"], []).append(actor["name"])
        return found


@contextmanager
def _start_somebodys_ray(python: str = sys.executable, **environment: str) -> Iterator[SomebodysRay]:
    """Start one and stop it; its token lies in its home directory."""
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [python, str(HERE / "somebody_elses.py"), folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**_without_ray(), "HOME": folder, **LOOPBACK, **environment},
            start_new_session=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            address = process.stdout.readline().strip()
            assert address, "somebody else's Ray did not start"
            yield SomebodysRay(process, address, Path(folder))
        finally:
            process.stdin.close()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()


@pytest.fixture(scope="module")
def somebodys_ray() -> Iterator[SomebodysRay]:
    """One cluster for a module's tests, with this Ray and Python."""
    with _start_somebodys_ray() as started:
        yield started


@pytest.fixture(scope="module")
def ray_of_another_version() -> Iterator[SomebodysRay]:
    """A cluster of the interpreter that FARM_TEST_OTHER_RAY names: a Python whose Ray is another version."""
    with _start_somebodys_ray(os.environ["FARM_TEST_OTHER_RAY"]) as started:
        yield started


@pytest.fixture
def start_somebodys_ray() -> Callable[..., AbstractContextManager[SomebodysRay]]:
    """Starts a cluster for a `with` block; keywords are variables of its environment."""
    return _start_somebodys_ray
