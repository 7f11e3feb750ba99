"""Sends jobs to Celery, many messages in one round trip, and looks how old the oldest one is that still waits there.

A failed send is not repeated: the rollouts stay marked as dispatched and are sent again when they are overdue.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import orjson
from celery.exceptions import CeleryError
from kombu.exceptions import KombuError, OperationalError
from redis import Redis
from redis.exceptions import RedisError

from gym.config import Settings, broker_url
from workers.app import RUN_JOB, create_celery, queue_name

Job = tuple[str, str, Sequence[tuple[str, int]]]  # batch, environment, (member, attempt) …

_LOG = logging.getLogger(__name__)


class Publisher:
    """Blocking; the dispatcher calls it from a thread."""

    def __init__(self, settings: Settings) -> None:
        self._app = create_celery(settings)
        self._queue = queue_name(settings.redis.prefix)
        prefix = self._app.conf.broker_transport_options["global_keyprefix"]
        self._list = f"{prefix}{self._queue}"
        self._redis = Redis.from_url(broker_url(settings.redis), socket_timeout=5, socket_connect_timeout=5)

    def send(self, jobs: Sequence[Job], sent_ms: int) -> bool:
        """Whether all were handed to the broker; `sent_ms` is of the server's clock and goes with each job."""
        try:
            with (
                self._app.producer_pool.acquire(block=True, timeout=5) as producer,
                producer.batch(max_size=500),  # type: ignore[attr-defined]  # new in kombu 5.7, not in its stubs
            ):
                for batch_id, environment, members in jobs:
                    rollouts = [f"{batch_id}:{member}" for member, _ in members]
                    attempts = [attempt for _, attempt in members]
                    self._app.send_task(
                        RUN_JOB,
                        kwargs={
                            "batch_id": batch_id,
                            "environment": environment,
                            "rollouts": rollouts,
                            "attempts": attempts,
                        },
                        queue=self._queue,
                        producer=producer,
                        headers={"rollouts": len(rollouts), "sent_ms": sent_ms},
                        argsrepr="",
                        kwargsrepr=describe(batch_id, environment, rollouts),
                        ignore_result=True,
                        retry=False,
                    )
        except (OperationalError, KombuError, CeleryError, RedisError, OSError) as error:
            _LOG.warning("%d jobs not sent: %s", len(jobs), error, extra={"action": "publish_failed"})
            return False
        return True

    def oldest_waiting_ms(self) -> int | None:
        """When the oldest waiting job was sent; `None` where none waits, 0 where that cannot be said."""
        try:
            text = self._redis.lindex(self._list, -1)
        except RedisError:
            return 0
        if text is None:
            return None
        try:
            return int(orjson.loads(text)["headers"]["sent_ms"])
        except (ValueError, KeyError, TypeError):
            return 0

    def close(self) -> None:
        """Give the connections back."""
        self._redis.close()
        self._app.close()


def describe(batch_id: str, environment: str, rollouts: Sequence[str]) -> str:
    """A job's arguments as Flower shows them."""
    return f"{{'environment': {environment!r}, 'batch': {batch_id!r}, 'rollouts': {list(rollouts)!r}}}"
