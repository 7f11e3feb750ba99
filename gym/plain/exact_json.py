"""JSON in which integers of any length keep their digits: orjson, which has 64 bits, where that is enough.

For values that pass through the farm unread: rows, requests, tool arguments, facts, observations.
Reading refuses what cannot be kept: NaN, Infinity, numbers that overflow, half surrogates, and integers of more digits
than Python converts (4,300).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, NoReturn

import orjson

# digits become "0", a point stays, all else becomes a blank: a long integer is then nineteen zeros after a blank
_SHAPE = bytes(0x30 if 0x30 <= byte <= 0x39 else 0x2E if byte == 0x2E else 0x20 for byte in range(256))
_LONG = b"0" * 19
MOST_LEVELS = 254  # that orjson writes
_OVERFLOW = "number is infinity"  # what orjson says of a number of more than 308 digits


def dumps(value: Any, *, sort_keys: bool = False, default: Callable[[Any], Any] | None = None) -> bytes:
    """JSON of what is plain (`gym.plain.values`). Raises TypeError or ValueError for anything else.

    `default` is asked for what is not plain. Half surrogates are escaped, since UTF-8 has no form for them.
    """
    try:
        return orjson.dumps(value, default, orjson.OPT_SORT_KEYS if sort_keys else 0)
    except TypeError:
        return _dumps_exactly(value, sort_keys=sort_keys, default=default)


def dumps_flat(value: Any, *, sort_keys: bool = False) -> bytes:
    """Decode a JSON text. Raises ValueError, also for NaN and Infinity."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS if sort_keys else 0)
    except TypeError:
        if is_deeper(value, MOST_LEVELS):
            raise ValueError(f"it is nested deeper than {MOST_LEVELS} levels") from None
        return _dumps_exactly(value, sort_keys=sort_keys, default=None)


def _dumps_exactly(value: Any, *, sort_keys: bool, default: Callable[[Any], Any] | None) -> bytes:
    _check_names(value)

    def plain(each: Any) -> Any:
        return orjson.loads(orjson.dumps(each, default))  # what orjson writes of itself: fragments, dataclasses

    def text(*, ascii_only: bool) -> str:
        return json.dumps(
            value,
            ensure_ascii=ascii_only,
            allow_nan=False,
            separators=(",", ":"),
            sort_keys=sort_keys,
            default=plain,
        )

    try:
        try:
            return text(ascii_only=False).encode()
        except UnicodeEncodeError:
            return text(ascii_only=True).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _check_names(value: Any) -> None:
    """Raise TypeError for a name that is no text: `json` would write another one."""
    level = [value]
    while level:
        below: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                if not all(isinstance(name, str) for name in each):
                    raise TypeError("Dict key must be str")
                below += each.values()
            elif isinstance(each, list | tuple):
                below += each
        level = below


def loads(data: bytes | bytearray | str) -> Any:
    """Return the value of a JSON text. Raises orjson.JSONDecodeError, a ValueError."""
    try:
        raw = data.encode() if isinstance(data, str) else data
    except UnicodeEncodeError as error:
        raise orjson.JSONDecodeError("half of a surrogate pair in the text", "", error.start) from None
    try:
        found = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        if _OVERFLOW in error.msg and _has_long_integer(raw):
            return _loads_exactly(raw, error)
        raise
    return _loads_exactly(raw, None) if _has_long_integer(raw) else found


def _has_long_integer(raw: bytes | bytearray) -> bool:
    """Whether there may be one; digits in a text look the same."""
    shape = raw.translate(_SHAPE)
    return shape.startswith(_LONG) or b" " + _LONG in shape


def _loads_exactly(raw: bytes | bytearray, known: orjson.JSONDecodeError | None) -> Any:
    """`known` is what orjson found wrong, which may be no more than a long integer."""
    try:
        found = json.loads(raw.decode(), parse_float=_finite, parse_constant=_no_constant)
        json.dumps(found, ensure_ascii=False).encode()  # half surrogates
    except RecursionError:
        raise orjson.JSONDecodeError("nested too deeply beside a long integer", "", 0) from None
    except ValueError as error:
        raise known or orjson.JSONDecodeError(str(error), "", 0) from None
    return found


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"number is infinity when parsed as double: {text[:40]}")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def is_deeper(value: Any, most: int) -> bool:
    """Whether objects and lists are nested in more than `most` levels."""
    level = [value] if isinstance(value, dict | list | tuple) else []
    for _ in range(most):
        level = [
            inner
            for each in level
            for inner in (each.values() if isinstance(each, dict) else each)
            if isinstance(inner, dict | list | tuple)
        ]
        if not level:
            return False
    return bool(level)
