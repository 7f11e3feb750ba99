"""A Redis that has reached its `maxmemory`, and one that would drop keys when it does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from gym.errors import SettingsError
from gym.state.redis.embedded import EmbeddedRedis
from gym.state.redis.eviction import require_noeviction


@pytest.fixture
def full(broken: Any) -> Iterator[Any]:
    """Call it to fill the farm's Redis; there is room again at the end."""

    def fill() -> None:
        broken.redis.config_set("maxmemory", 1)

    yield fill
    broken.redis.config_set("maxmemory", 0)


def test_a_full_redis_refuses_submissions_and_running_work_completes(broken: Any, until: Any, full: Any) -> None:
    workers = {process.pid for process in broken.processes("worker")}
    broken.slow_model(3.0)
    running = broken.submit(128)  # as many as there are slots
    until(lambda: broken.ledger(running)["running"] == 128, "all run")
    waiting = broken.submit(300)
    # jobs that workers fetch, and cannot claim, when slots become free
    until(lambda: broken.http.get("/v1/queues").json()["dispatched"] > 64, "jobs are in Celery")
    full()
    broken.slow_model(4.0)  # longer than a lease, should that not be renewed
    refused = broken.http.post("/v1/batches", json=broken.body(1))
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["code"] == "redis_full"
    results = broken.results(running)
    assert [(result["outcome"], result["attempt"]) for result in results] == [("succeeded", 1)] * 128
    assert broken.ledger(waiting)["submitted"] == 300
    broken.slow_model(0.0)
    broken.redis.config_set("maxmemory", 0)
    assert {result["outcome"] for result in broken.results(waiting)} == {"succeeded"}
    assert {process.pid for process in broken.processes("worker")} == workers


def test_a_batch_can_be_cancelled_while_redis_is_full(broken: Any, until: Any, full: Any) -> None:
    broken.slow_model(5.0)
    batch_id = broken.submit(400)
    until(lambda: broken.ledger(batch_id)["running"] > 0, "some run")
    full()
    answer = broken.http.delete(f"/v1/batches/{batch_id}")
    assert answer.status_code in (200, 202), answer.text
    until(lambda: broken.ledger(batch_id)["cancelled"] == 400, "all are cancelled")


def test_a_redis_that_drops_keys_is_refused_at_start_with_an_explanation(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path / "redis") as server, Redis.from_url(server.url) as redis:
        assert require_noeviction(server.url)
        redis.config_set("maxmemory-policy", "allkeys-lru")
        with pytest.raises(SettingsError, match="silently drop"):
            require_noeviction(server.url)
        environment = {**os.environ, "FARM_REDIS_URL": server.url, "FARM_API_PORT": "0", "FARM_PROXY_PORT": "0"}
        started = {
            command: subprocess.Popen(
                [sys.executable, "-m", "api.cli.main", command, "--data-dir", str(tmp_path / command)],
                env=environment,
                stderr=subprocess.PIPE,
                text=True,
            )
            for command in ("up", "api", "proxy", "dispatcher", "worker")
        }
        for command, process in started.items():
            _, said = process.communicate(timeout=60)
            assert process.returncode == 2, (command, said)
            assert "maxmemory-policy is allkeys-lru" in said


def test_a_redis_that_may_not_be_asked_is_taken_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with EmbeddedRedis(tmp_path) as server, Redis.from_url(server.url) as redis:
        redis.execute_command("ACL", "SETUSER", "silent", "on", ">pw", "~*", "+@all", "-info", "-config")
        assert require_noeviction(f"redis://silent:pw@127.0.0.1:{server.port}/0")
    assert "does not say its maxmemory-policy" in caplog.text
