"""Checks that values can be stored: text made storable, and the path of the first value that cannot be.

Stored JSON allows texts of valid UTF-8, numbers of 64 bits, and lists and objects with texts as names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

MOST_DEPTH = 100
MOST_VALUES = 200_000
MOST_TEXT = 4000
_PLAIN = (type(None), bool, float, bytes, bytearray)


def storable_text(text: str) -> str:
    """Return text with everything that UTF-8 cannot hold escaped, cut to `MOST_TEXT` characters."""
    return text[:MOST_TEXT].encode("utf-8", "backslashreplace").decode()


def describe_error(error: BaseException) -> str:
    """Return class and text of an exception, also if its `str` fails."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001  exceptions of user code may do anything in `__str__`
        text = "(its text cannot be had)"
    return storable_text(f"{type(error).__name__}: {text}")


def unstorable(value: object, name: str) -> str | None:
    """Return a sentence on the first value below `name` that cannot be stored, None if all can."""
    for left, (path, depth, each) in zip(range(MOST_VALUES, 0, -1), _walk(value, name), strict=False):
        fault = "is nested too deeply" if depth > MOST_DEPTH else _fault(each)
        if fault is not None:
            return storable_text(f"{path} {fault}")
        if left == 1:
            return None
    return None


def _walk(value: object, name: str) -> Iterator[tuple[str, int, object]]:
    """Yield every value below and its path, in reading order, and nothing below the maximum depth."""
    stack: list[tuple[str, int, object]] = [(name, 0, value)]
    while stack:
        path, depth, each = stack.pop()
        yield path, depth, each
        stack += reversed([(below, depth + 1, child) for below, child in _children(path, each)])


def _children(path: str, value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        for key, child in value.items():
            yield f"{path}.{key}" if isinstance(key, str) else f"{path}[{type(key).__name__}]", child
    elif isinstance(value, list | tuple):
        for number, child in enumerate(value):
            yield f"{path}[{number}]", child
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield f"{path}.{field.name}", getattr(value, field.name)


def _fault(value: Any) -> str | None:
    if type(value) in _PLAIN or isinstance(value, list | tuple) or is_dataclass(value):
        return None
    if isinstance(value, str):
        return None if _encodes(value) else "holds a half of a surrogate pair, which UTF-8 has no form for"
    if isinstance(value, int):
        return None if -(2**63) <= value < 2**64 else "is an integer of more than 64 bits"
    if isinstance(value, Mapping):
        odd = next((key for key in value if not isinstance(key, str)), None)
        return None if odd is None else f"has a name that is {_type_of(odd)}, not text"
    return f"is {_type_of(value)}, which cannot be stored"


def _type_of(value: object) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
