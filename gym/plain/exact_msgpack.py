"""msgpack that keeps integers of more than 64 bits, for which the format has no type.

They are an extension of type `INTEGER`, whose data are the decimal digits.
"""

from __future__ import annotations

from typing import Any

import msgpack

INTEGER = 1


def packb(value: Any) -> bytes:
    """Return a packed value. Raises TypeError or ValueError for what is not plain, or nested deeper than 500 levels."""
    packed: bytes = msgpack.packb(value, default=_extended)
    return packed


def unpackb(packed: bytes) -> Any:
    """Return a value that `packb` packed."""
    return msgpack.unpackb(packed, strict_map_key=False, ext_hook=_read_extended)


def _extended(value: object) -> Any:
    if isinstance(value, int):
        return msgpack.ExtType(INTEGER, str(value).encode())
    raise TypeError(f"can not serialize {type(value).__name__!r} object")


def _read_extended(code: int, data: bytes) -> Any:
    return int(data) if code == INTEGER else msgpack.ExtType(code, data)
