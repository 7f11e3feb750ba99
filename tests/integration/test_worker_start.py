"""A worker that comes up before its Redis."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from redis import Redis

from api.local.local_farm import farm_process, free_port
from gym.state.redis.embedded import EmbeddedRedis
from gym.state.redis.keys import Keys
from workers.process.lease import LeaseKeeper

PASSWORD = "for-this-test"


def until(condition: Callable[[], object], what: str) -> None:
    give_up_at = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < give_up_at, f"not within 60 s: {what}"
        time.sleep(0.05)


def test_a_worker_waits_for_its_redis(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path / "redis", free_port(), PASSWORD)
    log = tmp_path / "worker.log"
    settings = {"FARM_REDIS_URL": server.url, "FARM_DATA_DIR": str(tmp_path / "worker")}
    worker = farm_process("worker", [], settings, log)
    try:
        until(lambda: "waits for Redis" in log.read_text() or worker.poll() is not None, "the worker's wait")
        assert worker.poll() is None, log.read_text()
        with server, Redis.from_url(server.url) as redis:
            until(lambda: redis.zcard(Keys().workers) == 1, "its lease")
            worker.terminate()
            assert worker.wait(60) == 0
    finally:
        worker.kill()
        worker.wait()


def test_a_lease_is_entered_when_redis_was_away_at_its_start(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path, free_port(), PASSWORD)
    lease = LeaseKeeper(server.url, Keys(), "w1", ttl_s=5.0, describe=dict)
    lease.start()
    with server, Redis.from_url(server.url) as redis:
        until(lambda: redis.zscore(Keys().workers, "w1") is not None, "the lease")
        assert redis.llen(Keys().wake) == 1
        lease.stop()
        assert redis.zscore(Keys().workers, "w1") is None
