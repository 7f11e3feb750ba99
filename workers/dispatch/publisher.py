"""Sending of jobs to Celery, many messages in one round trip, and the age of the oldest job that still waits there.

A failed send is not repeated: the rollouts stay marked as dispatched and are sent again when they are overdue.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import orjson
from celery.exceptions import CeleryError
from kombu.exceptions import KombuError, OperationalError

from gym.config import Settings, broker_url
from gym.jsontypes import JsonObject
from gym.state.ledger.breakers import BreakerKey
from gym.state.redis.driver import Redis, RedisError
from workers.process.app import JUDGE_JOB, RUN_JOB, URGENT, USUAL, create_celery, queue_lists, queue_name

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A slice of a batch: (member, attempt) of rollouts of one environment.

    `probe` names the circuit breaker to probe; `alone` jobs run their rollouts one by one, beside nothing else;
    `urgent` jobs overtake those that wait in Celery.
    """

    batch_id: str
    environment: str
    members: Sequence[tuple[str, int]]
    probe: BreakerKey | None = None
    alone: bool = False
    urgent: bool = False

    @property
    def name(self) -> str:
        """Celery's name of the job."""
        return RUN_JOB

    def arguments(self) -> JsonObject:
        """The arguments of the job."""
        arguments: JsonObject = {
            "batch_id": self.batch_id,
            "environment": self.environment,
            "rollouts": [f"{self.batch_id}:{member}" for member, _ in self.members],
            "attempts": [attempt for _, attempt in self.members],
        }
        if self.probe is not None:
            arguments["probe"] = str(self.probe)
        if self.alone:
            arguments["alone"] = True
        return arguments


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeJob:
    """A slice of a batch: (member, token) of rollouts that wait for one judge; `probe` as of `Job`."""

    batch_id: str
    judge: str
    members: Sequence[tuple[str, str]]
    probe: BreakerKey | None = None
    alone: bool = False
    urgent: bool = False

    @property
    def name(self) -> str:
        """Celery's name of the job."""
        return JUDGE_JOB

    def arguments(self) -> JsonObject:
        """The arguments of the job."""
        arguments: JsonObject = {
            "batch_id": self.batch_id,
            "judge": self.judge,
            "rollouts": [f"{self.batch_id}:{member}" for member, _ in self.members],
            "tokens": [token for _, token in self.members],
        }
        if self.probe is not None:
            arguments["probe"] = str(self.probe)
        return arguments


class Publisher:
    """A blocking sender of jobs; the dispatcher calls it from a thread. The default queue is the workers'."""

    def __init__(self, settings: Settings, queue: str | None = None) -> None:
        self._app = create_celery(settings)
        self._queue = queue or queue_name(settings.redis.prefix)
        prefix = self._app.conf.broker_transport_options["global_keyprefix"]
        self._lists = queue_lists(self._queue, prefix)
        self._redis = Redis.from_url(broker_url(settings.redis), socket_timeout=5, socket_connect_timeout=5)

    def send(self, jobs: Sequence[Job | JudgeJob], sent_ms: int) -> bool:
        """Send jobs; return whether the broker took all. `sent_ms` is of the server's clock and is part of each job."""
        try:
            with (
                self._app.producer_pool.acquire(block=True, timeout=5) as producer,
                producer.batch(max_size=500),  # type: ignore[attr-defined]  # new in kombu 5.7, not in its stubs
            ):
                for job in jobs:
                    arguments = job.arguments()
                    self._app.send_task(
                        job.name,
                        kwargs=arguments,
                        queue=self._queue,
                        priority=URGENT if job.urgent else USUAL,
                        producer=producer,
                        headers={"rollouts": len(job.members), "sent_ms": sent_ms, "alone": job.alone},
                        argsrepr="",
                        kwargsrepr=describe(arguments),
                        ignore_result=True,
                        retry=False,
                    )
        except (OperationalError, KombuError, CeleryError, RedisError, OSError) as error:
            _LOG.warning("%d jobs not sent: %s", len(jobs), error, extra={"action": "publish_failed"})
            return False
        return True

    def oldest_waiting_ms(self) -> int | None:
        """Return when the oldest waiting job was sent; `None` if no job waits, 0 if the time is unknown."""
        try:
            oldest = [self._redis.lindex(name, -1) for name in self._lists]
            return min((int(orjson.loads(text)["headers"]["sent_ms"]) for text in oldest if text), default=None)
        except (RedisError, ValueError, KeyError, TypeError):
            return 0

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()
        self._app.close()


def describe(arguments: JsonObject) -> str:
    """Return a job's arguments as Flower shows them."""
    whom = "environment" if "environment" in arguments else "judge"
    shown = {whom: arguments[whom], "batch": arguments["batch_id"], **arguments}
    return repr({name: value for name, value in shown.items() if name not in ("batch_id", "attempts", "tokens")})
