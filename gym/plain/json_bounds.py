"""JSON from clients, decoded within a bound on its size in memory.

A body of 32 MiB that is mostly brackets becomes a gigabyte of Python objects and blocks all other requests for a
second. So brackets are counted first, which costs some milliseconds.
"""

from __future__ import annotations

from typing import Any

from gym.plain import exact_json

MOST_CONTAINERS = 1_000_000
_UNCOUNTED_BYTES = 256 * 1024


class TooManyContainers(ValueError):
    """Error for more objects and lists than data of that size needs."""


def loads(text: bytes | bytearray) -> Any:
    """Decode a JSON text. Raises TooManyContainers, orjson.JSONDecodeError."""
    if len(text) > _UNCOUNTED_BYTES and text.count(b"{") + text.count(b"[") > MOST_CONTAINERS:
        raise TooManyContainers(f"it has more than {MOST_CONTAINERS} opening brackets")
    return exact_json.loads(text)
