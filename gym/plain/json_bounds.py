"""JSON from outside, read within a bound on what it unpacks to.

A body of 32 MiB that is brackets and little else becomes a gigabyte of Python objects and a second without an answer to
anybody else. So brackets are counted first, which costs some milliseconds.
"""

from __future__ import annotations

from typing import Any

from gym.plain import exact_json

MOST_CONTAINERS = 1_000_000
_UNCOUNTED_BYTES = 256 * 1024


class TooManyContainers(ValueError):
    """More objects and lists than anything of that size needs."""


def loads(text: bytes | bytearray) -> Any:
    """Return the value. Raises TooManyContainers, orjson.JSONDecodeError."""
    if len(text) > _UNCOUNTED_BYTES and text.count(b"{") + text.count(b"[") > MOST_CONTAINERS:
        raise TooManyContainers(f"it has more than {MOST_CONTAINERS} opening brackets")
    return exact_json.loads(text)
