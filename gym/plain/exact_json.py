"""JSON in which integers of any length keep their digits: orjson, which has 64 bits, where that is enough.

For values that pass through the farm unread: tool arguments, facts, observations.
"""

from __future__ import annotations

import json
import re
from typing import Any

import orjson

_LONG = re.compile(rb"[0-9]{19}")
_LONG_TEXT = re.compile(r"[0-9]{19}")


def dumps(value: Any) -> bytes:
    """Encode plain values (`gym.plain.values`) as JSON. Raises TypeError or ValueError for anything else."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def loads(data: bytes | str) -> Any:
    """Decode a JSON text. Raises ValueError, also for NaN and Infinity."""
    found = orjson.loads(data)
    long = _LONG.search(data) if isinstance(data, bytes) else _LONG_TEXT.search(data)
    if long is None:
        return found
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
