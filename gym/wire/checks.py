"""Reading untyped JSON: each function returns the value with its type, or raises WireError naming the field."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import orjson

from gym.jsontypes import JsonObject
from gym.plain import exact_json
from gym.wire.errors import WireError


def words(text: str) -> frozenset[str]:
    """The words of a text, for long lists of field names."""
    return frozenset(text.split())


def kind(value: object) -> str:
    """The JSON name of a value's type, for error texts."""
    names = {str: "a text", bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def as_text(value: object, field: str) -> str:
    """A JSON string."""
    if not isinstance(value, str):
        raise WireError(field, f"expected a text, this is {kind(value)}")
    return value


def as_name(value: object, field: str) -> str:
    """A JSON string that is not empty."""
    text = as_text(value, field)
    if not text:
        raise WireError(field, "expected a text, this one is empty")
    return text


def as_object(value: object, field: str) -> JsonObject:
    """A JSON object."""
    if not isinstance(value, dict):
        raise WireError(field, f"expected an object, this is {kind(value)}")
    return value


def as_list(value: object, field: str) -> list[Any]:
    """A JSON array."""
    if not isinstance(value, list):
        raise WireError(field, f"expected a list, this is {kind(value)}")
    return value


def as_bool(value: object, field: str) -> bool:
    """A JSON boolean."""
    if not isinstance(value, bool):
        raise WireError(field, f"expected true or false, this is {kind(value)}")
    return value


def object_or_json(value: object, field: str) -> JsonObject:
    """A JSON object, or a text that holds one."""
    if isinstance(value, str):
        try:
            value = exact_json.loads(value)
        except orjson.JSONDecodeError as error:
            raise WireError(field, f"expected an object or a text with JSON in it: {error}") from error
    return as_object(value, field)


def only(value: JsonObject, known: Collection[str], field: str) -> None:
    """Refuse keys beside `known`, unless they are null."""
    for name, inner in value.items():
        if name not in known and inner is not None:
            raise WireError(f"{field}.{name}" if field else name, "cannot be translated to Chat Completions")


def present(value: JsonObject) -> JsonObject:
    """A copy without explicit nulls."""
    return {name: inner for name, inner in value.items() if inner is not None}
