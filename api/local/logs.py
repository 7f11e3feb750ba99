"""Logging of the farm's processes: one line per event on standard error, with its `action` if it has one."""

from __future__ import annotations

import logging
import time

FORMAT = "%(asctime)s.%(msecs)03dZ %(levelname)-7s %(name)s: %(message)s"

CHATTY = ("httpx", "aiohttp.access", "tornado.access", "celery.worker.strategy", "celery.app.trace")
"""Loggers that write a line per request or job; their warnings are still shown."""


class _Events(logging.Formatter):
    converter = staticmethod(time.gmtime)

    def format(self, record: logging.LogRecord) -> str:
        """Format the line, with `action=…` at the end for searching."""
        line = super().format(record)
        action = getattr(record, "action", None)
        return f"{line} action={action}" if action else line


def configure_logging(level: str) -> None:
    """Send the logs of all libraries to standard error; called once, by the command that runs a process."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Events(FORMAT, "%Y-%m-%dT%H:%M:%S"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    if level != "debug":
        for chatty in CHATTY:
            logging.getLogger(chatty).setLevel(logging.WARNING)
