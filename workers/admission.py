"""Celery fetches a job only while there are free slots.

Celery's own prefetch counts jobs; a job here is a slice of rollouts, of which one may take an hour. This consumer step
closes the Redis transport's tap by slots instead, the way Celery's `worker_disable_prefetch` does it by processes.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

from celery import bootsteps
from celery.signals import task_received

from workers.slots import Slots

IDLE_WAIT_S = 5  # for a job, in one request to Redis; kombu's own second would only wake an idle worker more often


def admission_step(slots: Slots) -> type[bootsteps.StartStopStep]:
    """A consumer step bound to these slots, for `app.steps["consumer"]`."""

    class Admission(bootsteps.StartStopStep):
        """Stands behind Celery's own `Tasks` step, which sets the channel up."""

        requires = ("celery.worker.consumer.tasks:Tasks",)

        def start(self, c: Any) -> None:
            """Called again after each reconnect, with a new channel."""
            channel = c.task_consumer.channel
            # a job in hand when the broker goes is sent again; kombu would write it to a temporary file and leave that
            channel.do_restore = False
            channel.brpop_timeout = IDLE_WAIT_S
            qos = channel.qos
            can_consume = qos.can_consume
            qos.can_consume = lambda: slots.has_room() and can_consume()
            reader, writer = os.pipe()
            os.set_blocking(reader, False)
            os.set_blocking(writer, False)
            if c.hub is not None:
                c.hub.add_reader(reader, lambda: os.read(reader, 4096))
            self._pipe: tuple[int, int] | None = (reader, writer)
            slots.notify(self._wake)

        def stop(self, c: Any) -> None:
            """Called before each reconnect and at the end."""
            slots.notify(None)
            pipe, self._pipe = getattr(self, "_pipe", None), None
            if pipe is None:
                return
            if c.hub is not None:
                c.hub.remove(pipe[0])
            for end in pipe:
                os.close(end)

        def _wake(self) -> None:
            """From any thread: make the hub look at the gate now, not at its next tick."""
            if self._pipe is not None:
                with suppress(OSError):  # full is as good as written, closed means stopped
                    os.write(self._pipe[1], b".")

    return Admission


def count_received(slots: Slots) -> Any:
    """Reserve slots, or hold the worker, when a job arrives; the caller keeps the receiver, as Celery does not."""

    def receive(request: Any = None, **_: Any) -> None:
        headers = request.request_dict
        if headers.get("alone"):
            slots.hold()
        else:
            slots.reserve(int(headers.get("rollouts") or 1))

    task_received.connect(receive, weak=False)
    return receive
