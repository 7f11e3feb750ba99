"""Real servers for the integration tests: Redis, and a whole farm with a mock model."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from redis import Redis

from api.cli.local_farm import LocalFarm, local_farm
from gym.state.embedded import EmbeddedRedis


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    """One server for the session; take `redis_url` instead."""
    with EmbeddedRedis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis_url(redis_server: EmbeddedRedis) -> str:
    """A Redis that holds nothing: databases 0 and, for Celery, 1 are emptied before each test."""
    with Redis.from_url(redis_server.url) as redis:
        redis.flushall()
    return redis_server.url


@pytest.fixture(scope="session")
def farm() -> Iterator[LocalFarm]:
    """A whole farm as a user starts it, with Flower, two workers and a mock model, shared by the session's tests.

    Batches of different tests share it, so a test looks at its own batches only.
    """
    with tempfile.TemporaryDirectory(prefix="farm-test-") as folder:
        with local_farm(Path(folder), options=["--workers", "2", "--concurrency", "64"]) as started:
            family = psutil.Process(started.process.pid).children(recursive=True)
            yield started
        _, left = psutil.wait_procs(family, timeout=5)
        for process in left:
            process.kill()
        assert not left, f"the farm left {[process.cmdline() for process in left]}"
