"""Real servers for the integration tests: Redis, and a whole farm with a mock model; and both ways to a farm."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from redis import Redis

from api.local.local_farm import LocalFarm, local_farm
from gym.client.over_redis import AsyncRedisLines, SyncRedisLines
from gym.relay.acl import acl_line
from gym.relay.address import DEFAULT_PREFIX, farm_channels
from gym.relay.caller import LostAnswer, RelayAnswer, RelayRequest
from gym.relay.frames import AskScope
from gym.state.redis.embedded import EmbeddedRedis
from gym.state.redis.store import Store

EndFamily = Callable[[subprocess.Popen[bytes], float], None]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run tests that use `carrier` over HTTP and Redis; over Redis only in `make test-all`, unless marked."""
    chosen = [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")]
    if "carrier" in metafunc.fixturenames and "carrier" not in chosen:
        always = metafunc.definition.get_closest_marker("both_carriers")
        redis = "redis" if always else pytest.param("redis", marks=pytest.mark.slow)
        metafunc.parametrize("carrier", ["http", redis])


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


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[Store]:
    """The farm's store on a Redis that holds nothing."""
    store = Store.connect(redis_url)
    yield store
    await store.close()


@pytest.fixture(scope="session")
def end_family() -> EndFamily:
    """Ends a process, and fails where anything that it started is left; `end_family(process, within_s)`."""
    return _end_family


def _end_family(process: subprocess.Popen[bytes], within_s: float) -> None:
    family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _, left = psutil.wait_procs(family, timeout=within_s)
    for one in left:
        one.kill()
    assert not left, [one.pid for one in left]


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


CLIENT_PASSWORD = "a-password-for-tests"
TIMEOUT_S = 60.0

NewClient = Callable[..., str]


def _new_client(farm_redis_url: str, name: str = "trainer", scope: AskScope = "submit") -> str:
    """Make a Redis user that may be a client and nothing else; its URL."""
    parts = urlsplit(farm_redis_url)
    channels = farm_channels(farm_redis_url, DEFAULT_PREFIX)
    with Redis.from_url(farm_redis_url) as redis:
        redis.execute_command(*acl_line(channels, name, scope=scope, password=CLIENT_PASSWORD).split(" "))
    return f"redis://{name}:{CLIENT_PASSWORD}@{parts.hostname}:{parts.port}/{channels.db}"


@pytest.fixture(scope="session")
def new_client() -> NewClient:
    """Makes clients' users: `new_client(url_of_the_farms_redis, name, scope)` gives the URL for `connect`."""
    return _new_client


class OverRedis(httpx.AsyncBaseTransport):
    """Carries a test's API requests over Redis, so that one test covers both ways."""

    def __init__(self, url: str) -> None:
        self._lines = AsyncRedisLines(url, timeout_s=TIMEOUT_S)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        asked = _ask(request, await request.aread())
        return _response(await self._lines.ask(asked, silence_s=TIMEOUT_S))

    async def aclose(self) -> None:
        await self._lines.close()


class SyncOverRedis(httpx.BaseTransport):
    """Carries requests as OverRedis does, in the calling thread."""

    def __init__(self, url: str) -> None:
        self._lines = SyncRedisLines(url, timeout_s=TIMEOUT_S)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        asked = _ask(request, request.read())
        return _response(self._lines.ask(asked, silence_s=TIMEOUT_S))

    def close(self) -> None:
        self._lines.close()


def _ask(request: httpx.Request, body: bytes) -> RelayRequest:
    path, _, query = request.url.raw_path.decode().partition("?")
    headers = {name.lower(): value for name, value in request.headers.items()}
    return RelayRequest(method=request.method, path=path, query=query, headers=headers, body=[body])


def _response(outcome: RelayAnswer | LostAnswer) -> httpx.Response:
    if isinstance(outcome, LostAnswer):
        raise httpx.ReadError(outcome.reason)
    return httpx.Response(outcome.status, headers=dict(outcome.headers), content=outcome.body)


@pytest.fixture
def over_redis() -> Callable[[str], httpx.AsyncBaseTransport]:
    """Makes a transport for `httpx.AsyncClient` from a client's URL."""
    return OverRedis


@pytest.fixture
def sync_over_redis() -> Callable[[str], httpx.BaseTransport]:
    """Makes a transport for `httpx.Client` from a client's URL."""
    return SyncOverRedis
