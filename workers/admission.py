"""Celery fetches a job only while there are free slots.

Celery's own prefetch counts jobs; a job here is a slice of rollouts, of which one may take an hour. This consumer step
closes the Redis transport's tap by slots instead, the way Celery's `worker_disable_prefetch` does it by processes.
"""

from __future__ import annotations

import os
from typing import Any

from celery import bootsteps
from celery.signals import task_received

from workers.slots import Slots


def admission_step(slots: Slots) -> type[bootsteps.StartStopStep]:
    """A consumer step bound to these slots, for `app.steps["consumer"]`."""

    class Admission(bootsteps.StartStopStep):
        """Stands behind Celery's own `Tasks` step, which sets the channel up."""

        requires = ("celery.worker.consumer.tasks:Tasks",)

        def start(self, c: Any) -> None:
            """Called again after each reconnect, with a new channel."""
            qos = c.task_consumer.channel.qos
            can_consume = qos.can_consume
            qos.can_consume = lambda: slots.has_room() and can_consume()
            self._reader, self._writer = os.pipe()
            os.set_blocking(self._reader, False)
            os.set_blocking(self._writer, False)
            if c.hub is not None:
                c.hub.add_reader(self._reader, self._drain)
            slots.notify(self._wake)

        def stop(self, c: Any) -> None:
            """Called before each reconnect and at the end."""
            slots.notify(None)
            reader, self._reader = getattr(self, "_reader", None), None
            writer, self._writer = getattr(self, "_writer", None), None
            if reader is not None and writer is not None:
                if c.hub is not None:
                    c.hub.remove(reader)
                os.close(reader)
                os.close(writer)

        def _wake(self) -> None:
            """From any thread: make the hub look at the gate now, not at its next tick."""
            if self._writer is not None:
                try:
                    os.write(self._writer, b".")
                except (BlockingIOError, OSError):  # full is as good as written, closed means stopped
                    return

        def _drain(self) -> None:
            if self._reader is not None:
                os.read(self._reader, 4096)

    return Admission


def count_received(slots: Slots) -> Any:
    """Reserve slots when a job arrives; the caller keeps the returned receiver, Celery only refers to it."""

    def receive(request: Any = None, **_: Any) -> None:
        slots.reserve(int(request.request_dict.get("rollouts") or 1))

    task_received.connect(receive, weak=False)
    return receive
