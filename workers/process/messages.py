"""Quarantine of broker messages that are not jobs: set aside before Celery reads them, so that the worker survives.

Invariant: Celery gets only jobs that this worker knows, with arguments that fit. On some others (text that is not
JSON, a message without headers) kombu and Celery end the whole worker, or they drop them without a trace.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import orjson
from celery import bootsteps
from kombu.exceptions import KombuError

from gym.jsontypes import JsonObject
from gym.state.ledger.breakers import BreakerKey
from gym.state.redis.driver import RedisError
from gym.state.redis.store import Store
from gym.state.redis.unreadable import DECODE_ERRORS, complain, printable, reason
from workers.process.app import JUDGE_JOB, RUN_JOB

MOST_KEPT = 20
KEPT_S = 3600
SHOWN = 1000
MOST_ROLLOUTS = 100_000
SetAside = Callable[[str, str | bytes, Exception], object]
_LOG = logging.getLogger(__name__)
_BESIDE = {RUN_JOB: ("environment", "attempts", int), JUDGE_JOB: ("judge", "tokens", str)}
_ALL = {"batch_id", "rollouts", "probe"}


def messages_step(set_aside: SetAside) -> type[bootsteps.StartStopStep]:
    """Return a consumer step that passes jobs on.

    `set_aside` is called in Celery's thread with queue, message and error.
    """

    class Messages(bootsteps.StartStopStep):
        """A step after Celery's own `Tasks` step, which sets the channel up."""

        requires = ("celery.worker.consumer.tasks:Tasks",)

        def start(self, c: Any) -> None:
            """Start with a new channel; called again after each reconnect."""
            channel = c.task_consumer.channel
            job = next((name for name in (RUN_JOB, JUDGE_JOB) if name in c.app.tasks), RUN_JOB)
            queue = c.task_consumer.queues[0].name
            transport = channel.connection
            transport._deliver = _passing(job, queue, channel, transport._deliver, set_aside)
            channel.handlers["BRPOP"] = _surviving(channel.handlers["BRPOP"], queue, set_aside)

    return Messages


def _passing(
    job: str, jobs_queue: str, channel: Any, deliver: Callable[[Any, str], object], set_aside: SetAside
) -> Callable[[Any, str], None]:
    """Return a function that delivers a message; other queues carry Celery's remote control and are not checked."""

    def receive(raw: Any, queue: str) -> None:
        try:
            if queue == jobs_queue:
                check_message(job, raw, channel)
        except (*DECODE_ERRORS, KombuError) as error:
            set_aside(queue, repr(raw)[:SHOWN], error)
            return
        deliver(raw, queue)

    return receive


def _surviving(read: Callable[..., Any], queue: str, set_aside: SetAside) -> Callable[..., Any]:
    """Return a reader of BRPOP's answer; kombu loses text that is not JSON before there is a message."""

    def read_next(**options: Any) -> Any:
        try:
            return read(**options)
        except DECODE_ERRORS as error:  # JSON and UTF-8 errors carry the text
            text: str | bytes = getattr(error, "doc", "") or getattr(error, "object", b"")
            set_aside(queue, text, error)
            return True

    return read_next


def check_message(job: str, raw: Any, channel: Any) -> None:
    """Raise a decode error, or one of kombu's, for a message that is not a job of this name."""
    message = channel.Message(raw, channel=channel)
    headers = message.headers
    if not isinstance(headers, Mapping) or not isinstance(headers.get("id"), str):
        raise TypeError("it has no headers of a job")
    if headers.get("task") != job:
        raise ValueError(f"it is {printable(str(headers.get('task')))}, and this worker runs {job}")
    args, kwargs, embedded = message.payload
    if args or not isinstance(kwargs, dict) or not isinstance(embedded, dict | None):
        raise TypeError("a job is called with named arguments alone")
    check_arguments(job, kwargs)
    if headers.get("rollouts") != len(kwargs["rollouts"]):  # slots are reserved by this number
        raise ValueError(f"it counts {headers.get('rollouts')!r} rollouts and holds {len(kwargs['rollouts'])}")
    if bool(headers.get("alone")) != kwargs.get("alone", False):
        raise ValueError("its headers and its arguments differ in `alone`")
    if any(headers.get(name) is not None for name in ("eta", "expires")):
        raise ValueError("a job has no time of its own")
    if headers.get("timelimit") not in (None, [None, None]):
        raise ValueError("a job has no time limit of its own")


def check_arguments(job: str, kwargs: JsonObject) -> None:
    """Raise a decode error for arguments with which a job cannot be called."""
    whom, beside, kind = _BESIDE[job]
    known = _ALL | {whom, beside} | ({"alone"} if job == RUN_JOB else set())
    if unknown := kwargs.keys() - known:
        raise ValueError(f"unknown arguments {sorted(unknown)[:5]}")
    batch_id = kwargs["batch_id"]
    for name in ("batch_id", whom):
        if not isinstance(kwargs[name], str):
            raise TypeError(f"{name} is a text")
    rollouts, others = kwargs["rollouts"], kwargs[beside]
    if not isinstance(rollouts, list) or not isinstance(others, list) or len(rollouts) != len(others):
        raise TypeError(f"rollouts and {beside} are lists of one length")
    if not 0 < len(rollouts) <= MOST_ROLLOUTS:
        raise ValueError(f"one job has 1 to {MOST_ROLLOUTS} rollouts, this one {len(rollouts)}")
    for rollout in rollouts:
        if not isinstance(rollout, str) or not rollout.startswith(f"{batch_id}:"):
            raise ValueError(f"{printable(str(rollout))} is no rollout of {printable(batch_id)}")
    if not all(type(each) is kind for each in others):
        raise TypeError(f"{beside} are each of type {kind.__name__}")
    if kwargs.get("probe") is not None:
        BreakerKey.parse(kwargs["probe"])
    if not isinstance(kwargs.get("alone", False), bool):
        raise TypeError("alone is true or false")


async def keep_message(store: Store, queue: str, message: str | bytes, error: Exception) -> None:
    """Keep a message that is not a job for an operator and for the dispatcher's alarm."""
    complain("message of", queue, error)
    text = printable(message) if isinstance(message, bytes) else message
    said = {"queue": queue, "reason": reason(error), "message": text[:SHOWN]}
    key = store.keys.unreadable_messages
    try:
        pipeline = store.redis.pipeline(transaction=False)
        pipeline.lpush(key, orjson.dumps(said | {"at": await store.now_ms()}))
        pipeline.ltrim(key, 0, MOST_KEPT - 1)
        pipeline.expire(key, KEPT_S)
        await pipeline.execute()
    except RedisError as failure:
        _LOG.warning("a message of %s is not kept: %s", queue, failure, extra={"action": "unreadable"})
