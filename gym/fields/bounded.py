"""Field types that requests share: bounded objects, strict numbers, texts that fit a header.

The bounds hold where a value enters. Values stored under earlier, wider bounds are read with `context=STORED`.
"""

from __future__ import annotations

from typing import Annotated, Any

import orjson
from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo

from gym.fields.masked import Secret

FREE_BYTES = 64 * 1024
URL_CHARS = 2048
KEY_CHARS = 8192
STORED = {"stored": True}


def _bounded(value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
    if info.context == STORED:
        return value
    try:
        small = not _is_larger(value) and len(orjson.dumps(value)) <= FREE_BYTES
    except orjson.JSONEncodeError:
        return value  # refused by `check_model`, with everything else that cannot be stored
    if not small:
        raise ValueError(
            f"at most {FREE_BYTES} bytes as JSON are taken; it is shown with every list, so keep large things "
            "elsewhere and give their name or address here"
        )
    return value


def _is_larger(value: object) -> bool:
    """Return whether a value is certainly too large, in at most as many steps as the bound has bytes."""
    size, left = 0, [value]
    while left and size <= FREE_BYTES:
        item = left.pop()
        if isinstance(item, str):
            size += len(item) + 2
        elif isinstance(item, dict | list):
            size += len(item) + 2
            if size <= FREE_BYTES:
                left += [*item, *item.values()] if isinstance(item, dict) else item
    return size > FREE_BYTES


def _number(value: object) -> object:
    if isinstance(value, bool | str | bytes):
        raise ValueError(f"it must be a number, this is {type(value).__name__}")  # noqa: TRY004  pydantic reports ValueErrors
    return value


def _for_header(value: str, info: ValidationInfo) -> str:
    if info.context == STORED:
        return value
    if len(value) > KEY_CHARS:
        raise ValueError(f"it has more than {KEY_CHARS} characters")
    if not value.isascii() or not value.isprintable():
        raise ValueError("it goes into an HTTP header: only printable ASCII, no line breaks")
    return value


Free = Annotated[dict[str, Any], AfterValidator(_bounded)]
"""An object of the caller's own, which the farm keeps and shows: at most `FREE_BYTES` as JSON."""

IsNumber = BeforeValidator(_number)
"""Refuses the booleans and texts that pydantic would take for numbers."""

IsBoolean = Field(strict=True)
"""Refuses the numbers and texts that pydantic would take for booleans."""

HeaderText = Annotated[Secret, AfterValidator(_for_header)]
"""A secret that can be sent as the value of a header, such as a key."""
