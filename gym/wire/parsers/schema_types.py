"""A parameter's text as the JSON type that the tool's schema asks for.

Behaves as `coerce_to_schema_type` and `extract_types_from_schema` in vLLM's `tool_parsers/utils.py`: the types that the
schema allows are tried in a fixed order, and a text that fits none stays text.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any

from gym.jsontypes import JsonObject

_WHOLE = re.compile(r"\s*[+-]?[0-9]+\s*")
_SAME_AS = {
    "string": ("str", "text", "varchar", "char", "enum"),
    "integer": ("int", "int32", "int64", "uint", "uint32", "uint64", "long", "short", "unsigned"),
    "number": ("float", "float32", "float64", "double"),
    "boolean": ("bool",),
    "object": ("dict",),
    "array": ("arr", "list", "sequence"),
}
_NAMES = {other: name for name, others in _SAME_AS.items() for other in others}
_OF_ENUM = {
    type(None): "null",
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    list: "array",
    dict: "object",
}


def properties_of(tools: list[JsonObject], name: str) -> JsonObject:
    """The parameters' schemas of the first tool of that name; none where the tool or its schema is unknown."""
    for tool in tools:
        function = tool.get("function")
        if isinstance(function, dict) and function.get("name") == name:
            properties = (function.get("parameters") or {}).get("properties")
            return properties if isinstance(properties, dict) else {}
    return {}


def types_of(schema: object) -> set[str]:
    """Every type that the schema allows, through `anyOf`, `oneOf`, `allOf` and `enum`; `string` where it says none."""
    found: set[str] = set()
    if isinstance(schema, dict):
        named = schema.get("type")
        found.update(name for name in (named if isinstance(named, list) else [named]) if isinstance(name, str))
        values = schema.get("enum")
        found.update(_OF_ENUM[type(value)] for value in (values if isinstance(values, list) else ()))
        for choice in ("anyOf", "oneOf", "allOf"):
            inner = schema.get(choice)
            for part in inner if isinstance(inner, list) else ():
                found |= types_of(part)
    return found or {"string"}


def typed(text: str, schema: object) -> Any:
    """The value that the text means under the schema."""
    types = {_NAMES.get(name, name) for name in (given.strip().lower() for given in types_of(schema))}
    for name, read in _READERS:
        if name in types:
            try:
                return read(text)
            except (ValueError, RecursionError):
                continue
    return _json(text)


def _null(text: str) -> None:
    if text.lower() != "null":
        raise ValueError(text)


def _number(text: str) -> int | float:
    if _WHOLE.fullmatch(text):
        return int(text)
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("JSON has no such number")
    return int(value) if value == int(value) else value


def _boolean(text: str) -> bool:
    match text.lower().strip():
        case "true" | "1":
            return True
        case "false" | "0":
            return False
    raise ValueError(text)


def _finite_json(text: str) -> Any:
    value = json.loads(text)
    json.dumps(value, allow_nan=False)
    return value


def _json(text: str) -> Any:
    """For a type that JSON Schema does not know: JSON where the text is JSON."""
    try:
        return _finite_json(text)
    except (ValueError, RecursionError):
        return text


_READERS: tuple[tuple[str, Callable[[str], Any]], ...] = (
    ("null", _null),
    ("integer", int),
    ("number", _number),
    ("boolean", _boolean),
    ("object", _finite_json),
    ("array", _finite_json),
    ("string", str),
)
