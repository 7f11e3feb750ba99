"""Celery's events of jobs, gathered for a moment instead of published one by one as they come.

Flower alone reads them. Celery publishes at each turn of its loop, and each message is a round trip to Redis in the
worker's main thread: under load that was an eighth of a worker's CPU.
"""

from __future__ import annotations

from typing import Any

from celery import bootsteps

FLUSH_S = 0.25
MOST_GATHERED = 500


class GatherEvents(bootsteps.StartStopStep):
    """A consumer step behind Celery's `Events`, which makes a new event dispatcher at each reconnect."""

    requires = ("celery.worker.consumer.events:Events",)

    def start(self, c: Any) -> None:
        """Publish what has gathered once every `FLUSH_S`, or earlier where `MOST_GATHERED` events wait."""
        hub, dispatcher = c.hub, c.event_dispatcher
        if hub is None or dispatcher is None:
            return
        due = False

        def flush() -> None:
            nonlocal due
            due = False
            c._flush_events()  # the consumer's own, which looks whether events are still sent

        def schedule() -> None:
            """On the hub's thread, since its timer is not for others."""
            nonlocal due
            if not due:
                due = True
                hub.call_later(FLUSH_S, flush)

        dispatcher.buffer_limit = MOST_GATHERED
        dispatcher.on_send_buffered = lambda: None if due else hub.call_soon(schedule)
