"""Celery's connection to its broker: kombu's Redis transport, which here drops values that are not messages.

An unreadable value in a queue's list would end the worker that takes it out. Dropping it loses no rollout: the
dispatcher sends rollouts again that no worker claims.
"""

from __future__ import annotations

import logging
from json import JSONDecodeError
from typing import Any

from kombu.transport import redis

_LOG = logging.getLogger(__name__)
TRANSPORT = f"{__name__}:Transport"
SHOWN_CHARS = 80


class Channel(redis.Channel):
    """A channel that skips values that are not JSON."""

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)  # type: ignore[misc]  # the stubs lack it
        except (JSONDecodeError, UnicodeDecodeError) as error:
            _dropped(str(error))
            return True


class Transport(redis.Transport):
    """A transport that skips JSON that is not a message."""

    Channel = Channel

    def _deliver(self, message: Any, queue: str | None) -> None:
        for channel in (self.channels or [])[:1]:
            try:
                channel.Message(message, channel=channel)
            except Exception as error:  # noqa: BLE001  kombu reads values of unknown origin
                _dropped(f"{type(error).__name__}: {str(message)[:SHOWN_CHARS]}")
                return
        super()._deliver(message, queue)


def _dropped(reason: str) -> None:
    _LOG.error("a value in the broker's queue is not a message and was dropped: %s", reason, extra={"action": "junk"})
