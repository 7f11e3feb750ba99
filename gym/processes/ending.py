"""Forced exit of a process that hangs in its shutdown."""

from __future__ import annotations

import logging
import os
import threading

_LOG = logging.getLogger(__name__)


def end_within(seconds: float, status: int = 0) -> None:
    """Exit this process after so many seconds, whatever it waits for; no cleanup runs then."""

    def end() -> None:
        _LOG.warning("the shutdown took longer than %.0f s; the process ends now", seconds, extra={"action": "cut"})
        logging.shutdown()
        os._exit(status)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
