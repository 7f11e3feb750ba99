"""Entries of the broker's queue that are no messages, before real workers."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from kombu import Queue
from redis import Redis

from gym.config import Settings, broker_url
from gym.state.settings import RedisSettings
from workers.process.app import USUAL, create_celery, queue_lists, queue_name

JUNK = (
    b"garbage",
    b"[1,2]",
    b"",
    b"null",
    b"\xff\xfe",
    b'{"properties": 3}',
    b'{"body": "x", "properties": {}}',
    b"{}",
)
WITHIN_S = 60.0


def test_junk_is_passed_over_and_the_next_message_comes(redis_url: str) -> None:
    settings = Settings(redis={"url": redis_url})
    app = create_celery(settings)
    [_, usual] = queue_lists(queue_name("farm"), "farm.")
    got: list[object] = []
    with Redis.from_url(broker_url(settings.redis)) as broker, app.connection_for_read() as connection:
        broker.lpush(usual, *JUNK)
        app.send_task("farm.run_rollouts", args=["b"], priority=USUAL)
        queue = Queue(queue_name("farm"))
        with connection.Consumer([queue], callbacks=[lambda body, message: got.append(body)], no_ack=True):
            give_up_at = time.monotonic() + WITHIN_S
            while not got and time.monotonic() < give_up_at:
                connection.drain_events(timeout=WITHIN_S)
        assert len(got) == 1
        assert broker.llen(usual) == 0


@pytest.mark.parametrize("command", ["worker", "judge-worker"])
def test_a_worker_outlives_junk(redis_url: str, tmp_path: Path, command: str) -> None:
    log = tmp_path / "log"
    options = ["--redis-url", redis_url, "--data-dir", str(tmp_path / "data")]
    with log.open("wb") as said, Redis.from_url(broker_url(RedisSettings(url=redis_url))) as broker:
        worker = subprocess.Popen([sys.executable, "-m", "api.cli.main", command, *options], stderr=said, stdout=said)
        try:
            name = queue_name("farm") if command == "worker" else queue_name("farm").replace("rollouts", "judging")
            [_, usual] = queue_lists(name, "farm.")
            give_up_at = time.monotonic() + WITHIN_S
            for junk in JUNK:
                broker.lpush(usual, junk)
            while broker.llen(usual) and time.monotonic() < give_up_at and worker.poll() is None:
                time.sleep(0.1)
            while log.read_text().count("is no message") < len(JUNK) and time.monotonic() < give_up_at:
                assert worker.poll() is None, log.read_text()[-3000:]
                time.sleep(0.1)
            assert worker.poll() is None
            assert broker.llen(usual) == 0, log.read_text()[-3000:]
        finally:
            worker.terminate()
            worker.wait(60)
