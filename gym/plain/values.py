"""Values of user code as plain data: exact built-in types that JSON can hold.

Environments return numpy scalars, tensors, decimals and the like. They are converted on entry, so that no later code
can fail to encode them. A value without a faithful form raises `NotPlain`, whose text names field and type. No numeric
library is imported: numbers are recognised by `numbers`, `__float__`, `__index__`, `item()` and `tolist()`.

Integers may have any length; `gym.plain.exact_json` writes them.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from datetime import date, datetime, time
from enum import Enum
from typing import Any
from uuid import UUID

import orjson
from pydantic import BaseModel

MOST_DEPTH = 200  # orjson writes 254 levels, and plain values are nested in other objects
MOST_BYTES = 16 * 2**20
_NAME_CHARS = 60
_MODEL_TIMES = (datetime, date, time, UUID)


class NotPlain(ValueError):
    """Error for a value that has no form in JSON, or is not a finite number; the text names the field and the type."""


class TooLarge(NotPlain):
    """Error for a value that takes more bytes than allowed."""


def number(value: object, name: str) -> float:
    """Return a finite float for any real number or boolean. Raises NotPlain."""
    if type(value) is float and math.isfinite(value):
        return value
    found = _float_of(value)
    if found is None or not math.isfinite(found):
        raise NotPlain(f"{name} is {_shown(value)}; expected a finite number or a boolean")
    return found


def truth(value: object, name: str) -> bool:
    """Return a bool for any boolean, or for a number that is 0 or 1. Raises NotPlain."""
    if value is True or value is False:
        return value
    found = _float_of(value)
    if found not in (0.0, 1.0):
        raise NotPlain(f"{name} is {_shown(value)}; expected a boolean")
    return found == 1.0


def text(value: object, name: str) -> str:
    """Return a text that UTF-8 can hold; halves of surrogate pairs are replaced. Raises NotPlain for other types."""
    if not isinstance(value, str):
        raise NotPlain(f"{name} is {_shown(value)}; expected a text")
    return utf8(value)


def utf8(value: str) -> str:
    """Return the text as an exact `str`, without halves of surrogate pairs, which cannot be sent."""
    if type(value) is not str:
        value = str.__str__(value)
    return value if value.isascii() else value.encode("utf-8", "replace").decode()


def plain(value: object, name: str, *, most_bytes: int = MOST_BYTES) -> Any:
    """Return a value that survives JSON unchanged: for facts, which code reads again.

    Keys are texts. Raises NotPlain, TooLarge.
    """
    if _is_plain(value, most_bytes):
        return value
    return _Conversion(most_bytes, lenient=False).run(value, name)


def shown(value: object, name: str, *, most_bytes: int = MOST_BYTES) -> Any:
    """Return a value as a model or a client is shown it.

    Unlike `plain` it accepts data classes, pydantic models, dates and enums, turns keys that are numbers into texts,
    and replaces halves of surrogate pairs. Raises NotPlain, TooLarge.
    """
    if _is_plain(value, most_bytes):
        return value
    return _Conversion(most_bytes, lenient=True).run(value, name)


def shown_in_part(value: object, name: str, *, most_bytes: int) -> tuple[Any, bool]:
    """Return a value as `shown` does, cut to `most_bytes`, and whether it is complete; sets become lists.

    Nothing beyond that size is copied. Raises NotPlain.
    """
    if _is_plain(value, most_bytes):
        return value, True
    conversion = _Conversion(most_bytes, lenient=True, cuts=True)
    found = conversion.run(value, name)
    return found, conversion.room >= 0


def cut_text(value: str, most_bytes: int) -> tuple[str, bool]:
    """Return at most `most_bytes` of a text in UTF-8, and whether that is all of it; no more than that is copied."""
    if len(value) * 4 <= most_bytes or (len(value) <= most_bytes and value.isascii()):
        return utf8(value), True
    encoded = value[: most_bytes + 1].encode("utf-8", "replace")
    if len(encoded) <= most_bytes:
        return encoded.decode(), True
    return encoded[:most_bytes].decode("utf-8", "ignore"), False


def _is_plain(value: object, room: int) -> bool:
    """Return whether nothing has to be converted or cut: the usual case, kept fast."""
    level: list[Any] = [value]
    for _ in range(MOST_DEPTH):
        below: list[Any] = []
        for each in level:
            kind = type(each)
            if kind is str:
                room -= len(each)
                if room < 0 or not (each.isascii() or _is_utf8(each)):
                    return False
            elif kind is float:
                if not math.isfinite(each):
                    return False
            elif kind is dict:
                room -= 4 * len(each)
                if room < 0 or not all(type(key) is str for key in each):
                    return False
                below.extend(each)
                below.extend(each.values())
            elif kind is list:
                room -= 2 * len(each)
                if room < 0:
                    return False
                below.extend(each)
            elif kind is not int and kind is not bool and each is not None:
                return False
        if not below:
            return True
        level = below
    return False


def _is_utf8(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


class _Conversion:
    """Conversion of one value. `room` counts the bytes left; with `cuts` it may end below zero."""

    def __init__(self, room: int, *, lenient: bool, cuts: bool = False) -> None:
        self.room = room
        self._most_bytes = room
        self._lenient = lenient
        self._cuts = cuts
        self._name = ""

    def run(self, value: object, name: str) -> Any:
        """Return the plain value. Raises NotPlain, TooLarge; also if the value's own methods raise."""
        self._name = name
        try:
            return self.convert(value, name, 0)
        except NotPlain:
            raise
        except Exception as error:
            raise NotPlain(f"{name} cannot be converted: {type(error).__name__}") from error

    def convert(self, value: Any, name: str, depth: int) -> Any:
        """Convert one part of the value; `name` is its path for error texts. Raises NotPlain, TooLarge."""
        if depth > MOST_DEPTH:
            raise NotPlain(f"{_cut_name(name)} is nested more than {MOST_DEPTH} levels deep, or holds itself")
        self._take(2)
        if value is None or value is True or value is False:
            return value
        if isinstance(value, str):
            return self._text(value, name)
        if isinstance(value, dict):
            return self._object(value, name, depth)
        if isinstance(value, list | tuple) or (self._cuts and isinstance(value, set | frozenset)):
            return self._list(value, name, depth)
        if isinstance(value, int):
            return int(value)
        if isinstance(value, float):
            return number(value, name)
        return self._other(value, name, depth)

    def _take(self, size: int) -> None:
        self.room -= size
        if self.room < 0 and not self._cuts:
            raise TooLarge(f"{self._name} takes more than {self._most_bytes} bytes")

    def _text(self, value: str, name: str) -> str:
        if type(value) is not str:
            value = str.__str__(value)
        before = max(0, self.room)
        if self._cuts:
            kept, whole = cut_text(value, before)
            self._take(len(kept.encode()) if whole else before + 1)
            return kept
        self._take(len(value))
        if not self._lenient and not _is_utf8(value):
            raise NotPlain(f"{name} is a text with half of a surrogate pair, which UTF-8 cannot hold")
        return utf8(value)

    def _object(self, value: dict[Any, Any], name: str, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, each in value.items():
            if self.room < 0:
                break
            told = self._key(key, name)
            if told in found:
                raise NotPlain(f"{name} has two keys that are both written {told[:_NAME_CHARS]!r}")
            found[told] = self.convert(each, f"{name}.{told[:_NAME_CHARS]}", depth + 1)
        return found

    def _key(self, key: Any, name: str) -> str:
        if isinstance(key, str):
            return self._text(key, f"a key of {name}")
        if self._lenient:
            if key is None or isinstance(key, bool | int | float | Enum | datetime | date | time | UUID):
                return str(orjson.loads(orjson.dumps({key: 0}, option=orjson.OPT_NON_STR_KEYS)).popitem()[0])
            if (found := _scalar(key)) is not None:
                return self._key(found, name)
        raise NotPlain(f"{name} has a key of type {_type_of(key)}; expected texts")

    def _list(self, value: Any, name: str, depth: int) -> list[Any]:
        found = []
        for place, each in enumerate(value):
            if self.room < 0:
                break
            found.append(self.convert(each, f"{name}[{place}]", depth + 1))
        return found

    def _other(self, value: Any, name: str, depth: int) -> Any:
        """Convert numbers and arrays by their protocols; with `lenient` also every type that orjson supports."""
        if self._lenient:
            if isinstance(value, BaseModel):
                return self.convert(value.model_dump(mode="json"), name, depth + 1)
            if dataclasses.is_dataclass(value) and not isinstance(value, type):
                fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
                return self.convert(fields, name, depth + 1)
            if isinstance(value, Enum):
                return self.convert(value.value, name, depth + 1)
            if isinstance(value, _MODEL_TIMES):
                return orjson.loads(orjson.dumps(value))
        if _is_array(value):
            return self._array(value, name, depth)
        found = _scalar(value)
        if found is None:
            raise NotPlain(f"{name} is {_shown(value)}, which JSON cannot hold")
        return number(found, name) if isinstance(found, float) else found

    def _array(self, value: Any, name: str, depth: int) -> Any:
        elements = math.prod(value.shape)
        if 2 * elements > self.room:
            raise TooLarge(f"{name}, an array of {elements} elements, takes more than {self._most_bytes} bytes")
        listed = value.tolist()
        if _is_plain(listed, self.room):
            self._take(2 * elements)
            return listed
        return self.convert(listed, name, depth + 1)


def _is_array(value: Any) -> bool:
    """Return whether a value is an array of numpy, torch or the like with at least one axis."""
    shape = getattr(value, "shape", None)
    return isinstance(shape, tuple) and len(shape) > 0 and callable(getattr(value, "tolist", None))


def _scalar(value: Any, more: int = 2) -> bool | int | float | None:
    """Return a number or boolean of any library as a built-in one, else None.

    An array of one element counts as a number.
    """
    if isinstance(value, bool | int | float):
        return bool(value) if isinstance(value, bool) else int(value) if isinstance(value, int) else float(value)
    if isinstance(value, str | bytes | bytearray) or (
        isinstance(value, numbers.Complex) and not isinstance(value, numbers.Real)
    ):
        return None
    kind = type(value)
    try:
        # a masked scalar of numpy has an item, and `tolist()` says that it has no value
        single = getattr(value, "item" if _is_array(value) else "tolist", None) or getattr(value, "item", None)
        if callable(single):
            value = single()
            if type(value) is not kind:
                return _scalar(value, more - 1) if more else None
        if hasattr(kind, "__index__"):
            return int(value.__index__())
        return float(value) if hasattr(kind, "__float__") else None
    except Exception:  # noqa: BLE001  it is another library's code
        return None


def _float_of(value: Any) -> float | None:
    found = _scalar(value)
    try:
        return None if found is None else float(found)
    except OverflowError:
        return math.inf


def _shown(value: object) -> str:
    """Describe a value for an error text: its type, and the value if it is short and harmless."""
    if value is None or isinstance(value, bool | int | float | str | numbers.Number):
        try:
            return f"{repr(value)[:_NAME_CHARS]} (of type {_type_of(value)})"
        except Exception:  # noqa: BLE001  as a huge integer, or another library's code
            return f"a value of type {_type_of(value)}"
    return f"a value of type {_type_of(value)}"


def _type_of(value: object) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _cut_name(name: str) -> str:
    return name if len(name) <= _NAME_CHARS else f"{name[:_NAME_CHARS]}…"
