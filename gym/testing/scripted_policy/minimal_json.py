"""The smallest value that a JSON schema allows, for replies that must fit one.

Supports the keywords that tools and structured outputs use: types, required properties, enum, const, bounds of length
and number, $ref within the schema, anyOf, oneOf, allOf. Patterns and formats are ignored.
"""

from __future__ import annotations

import math
from typing import Any

_DEEPEST = 32


def minimal_value(schema: Any) -> Any:
    """Return a value that fits the schema, deterministically."""
    return _value(schema, schema, 0)


def _value(schema: Any, root: Any, depth: int) -> Any:
    if not isinstance(schema, dict) or depth > _DEEPEST:
        return None
    schema = _resolve(schema, root)
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    for key in ("anyOf", "oneOf"):
        if schema.get(key):
            rest = {name: value for name, value in schema.items() if name != key}
            choice = min(schema[key], key=lambda option: _resolve(option, root).get("type") == "null")
            return _value(_merge([rest, _resolve(choice, root)]), root, depth + 1)
    return _of_type(schema, root, depth)


def _resolve(schema: Any, root: Any) -> dict[str, Any]:
    """Return the schema with `$ref` resolved and `allOf` merged in."""
    for _ in range(_DEEPEST):
        if not isinstance(schema, dict):
            return {}
        if isinstance(ref := schema.get("$ref"), str) and ref.startswith("#"):
            target: Any = root
            for key in ref.removeprefix("#").strip("/").split("/"):
                if key:
                    target = target.get(key.replace("~1", "/").replace("~0", "~"), {})
            schema = target
        elif schema.get("allOf"):
            rest = {name: value for name, value in schema.items() if name != "allOf"}
            schema = _merge([rest, *(_resolve(part, root) for part in schema["allOf"])])
        else:
            return schema
    return {}


def _merge(schemas: list[dict[str, Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for schema in schemas:
        for key, value in schema.items():
            if key == "properties":
                merged[key] = {**merged.get(key, {}), **value}
            elif key == "required":
                merged[key] = [*merged.get(key, ()), *value]
            else:
                merged[key] = value
    return merged


def _of_type(schema: dict[str, Any], root: Any, depth: int) -> Any:
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = next((name for name in kind if name != "null"), "null")
    if kind is None:
        kind = "object" if "properties" in schema else "array" if "items" in schema else "string"
    if kind == "object":
        properties = schema.get("properties") or {}
        return {name: _value(properties.get(name, {}), root, depth + 1) for name in schema.get("required") or ()}
    if kind == "array":
        return [_value(schema.get("items", {}), root, depth + 1)] * int(schema.get("minItems", 0))
    if kind in ("integer", "number"):
        return _number(schema, whole=kind == "integer")
    if kind == "string":
        return "x" * int(schema.get("minLength", 0))
    return False if kind == "boolean" else None


def _number(schema: dict[str, Any], *, whole: bool) -> int | float:
    step = schema.get("multipleOf") or 1
    low: float = schema.get("minimum", -math.inf)
    above: float = schema.get("exclusiveMinimum", -math.inf)
    high: float = min(schema.get("maximum", math.inf), schema.get("exclusiveMaximum", math.inf) - step)
    value: float = 0
    if value < low or value <= above or value > high:
        if math.isinf(max(low, above)):
            value = math.floor(high / step) * step
        else:
            value = math.ceil(max(low, above) / step) * step
            value += step if value <= above else 0
    return int(value) if whole else value
