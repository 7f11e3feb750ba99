"""Celery's channel in a worker, against a real broker."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from gym.config import Settings
from gym.state.redis.embedded import EmbeddedRedis
from workers.process.app import create_celery
from workers.process.consumer_steps import admission_step
from workers.process.slots import Slots


def test_a_job_in_hand_when_the_broker_goes_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dumps = tmp_path / "tmp"
    dumps.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(dumps))
    with EmbeddedRedis(tmp_path / "farm") as server:
        app = create_celery(Settings(redis={"url": server.url}))
        connection = app.connection_for_read()
        channel = connection.default_channel
        consumer = SimpleNamespace(task_consumer=SimpleNamespace(channel=channel), hub=None)
        step = admission_step(Slots(1))(consumer)
        step.start(consumer)
        queue = connection.SimpleQueue("jobs")
        queue.put({"rollouts": ["b:0:0"]})
        message = channel.basic_get("jobs")
        assert message is not None
    channel.close()  # as Celery does before it connects again
    step.stop(consumer)
    assert list(dumps.iterdir()) == []
