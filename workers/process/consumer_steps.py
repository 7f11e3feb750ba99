"""Steps that the farm adds to Celery's consumer: admission of jobs by free slots, and gathered events.

Celery's own prefetch counts jobs; a job here is a slice of rollouts, of which one may take an hour. The admission step
closes the Redis transport's tap by slots instead, the way Celery's `worker_disable_prefetch` does it by processes.

Only Flower reads Celery's events of jobs. Celery publishes them one by one at each turn of its loop, and each is a
round trip to Redis in the worker's main thread: under load that was an eighth of a worker's CPU. So they are gathered.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

from celery import bootsteps
from celery.signals import task_received

from workers.process.slots import Slots

IDLE_WAIT_S = 5  # for a job, in one request to Redis; kombu's own second would only wake an idle worker more often


def admission_step(slots: Slots) -> type[bootsteps.StartStopStep]:
    """Return a consumer step bound to these slots, for `app.steps["consumer"]`."""

    class Admission(bootsteps.StartStopStep):
        """A step after Celery's own `Tasks` step, which sets the channel up."""

        requires = ("celery.worker.consumer.tasks:Tasks",)

        def start(self, c: Any) -> None:
            """Start with a new channel; called again after each reconnect."""
            channel = c.task_consumer.channel
            # a job received when the broker goes is sent again; kombu would write it to a temporary file and leave that
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
            """Stop; called before each reconnect and at the end."""
            slots.notify(None)
            pipe, self._pipe = getattr(self, "_pipe", None), None
            if pipe is None:
                return
            if c.hub is not None:
                c.hub.remove(pipe[0])
            for end in pipe:
                os.close(end)

        def _wake(self) -> None:
            """Make the hub look at the gate now, not at its next tick; safe to call from any thread."""
            if self._pipe is not None:
                with suppress(OSError):  # a full pipe wakes the hub as well, a closed one means stopped
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


FLUSH_S = 0.25


MOST_GATHERED = 500


class GatherEvents(bootsteps.StartStopStep):
    """A consumer step behind Celery's `Events`, which makes a new event dispatcher at each reconnect."""

    requires = ("celery.worker.consumer.events:Events",)

    def start(self, c: Any) -> None:
        """Publish gathered events every `FLUSH_S`, or earlier if `MOST_GATHERED` of them wait."""
        hub, dispatcher = c.hub, c.event_dispatcher
        if hub is None or dispatcher is None:
            return
        due = False

        def flush() -> None:
            nonlocal due
            due = False
            c._flush_events()  # the consumer's method, which checks whether events are still sent

        def schedule() -> None:
            """Schedule the flush on the hub's thread, since its timer is not thread-safe."""
            nonlocal due
            if not due:
                due = True
                hub.call_later(FLUSH_S, flush)

        dispatcher.buffer_limit = MOST_GATHERED
        dispatcher.on_send_buffered = lambda: None if due else hub.call_soon(schedule)
