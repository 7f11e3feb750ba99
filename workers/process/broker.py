"""Celery's way to its broker: kombu's Redis transport, which drops what is no message.

Whatever lies in a queue's list and cannot be read would end the worker that takes it out. It holds no rollout that
could be lost: the dispatcher sends again what no worker claims.
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
    """A channel that passes over what is no JSON."""

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)  # type: ignore[misc]  # the stubs lack it
        except (JSONDecodeError, UnicodeDecodeError) as error:
            _dropped(str(error))
            return True


class Transport(redis.Transport):
    """A transport that passes over JSON which is no message."""

    Channel = Channel

    def _deliver(self, message: Any, queue: str | None) -> None:
        for channel in (self.channels or [])[:1]:
            try:
                channel.Message(message, channel=channel)
            except Exception as error:  # noqa: BLE001  kombu's reading of what anyone may have put there
                _dropped(f"{type(error).__name__}: {str(message)[:SHOWN_CHARS]}")
                return
        super()._deliver(message, queue)


def _dropped(reason: str) -> None:
    _LOG.error("what lay in the broker's queue is no message and was dropped: %s", reason, extra={"action": "junk"})
