"""Gemini's schemas as JSON Schema.

They follow OpenAPI 3.0: types in upper case, `nullable`, counts as texts, and an order of properties.
Source: Google's `Schema`.
"""

from __future__ import annotations

from gym.jsontypes import JsonObject
from gym.wire.checks import as_list, as_object, as_text
from gym.wire.errors import WireError

_TYPES = frozenset({"string", "number", "integer", "boolean", "array", "object", "null"})
_COUNTS = frozenset({"minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"})
_DROPPED = frozenset({"propertyOrdering", "nullable"})
_RENAMED = {"example": "examples", "ref": "$ref", "defs": "$defs"}


def camel(name: str) -> str:
    """Return a field's name in camel case; Google's servers read `snake_case` as well."""
    head, *rest = name.split("_")
    return head + "".join(word[:1].upper() + word[1:] for word in rest) if head else name


def fields_of(value: object, field: str) -> JsonObject:
    """Return an object without nulls, its names in camel case. Raises WireError."""
    return {camel(name): inner for name, inner in as_object(value, field).items() if inner is not None}


def json_schema(value: object, field: str) -> JsonObject:
    """Return a schema as JSON Schema. Raises WireError."""
    given = fields_of(value, field)
    schema: JsonObject = {}
    for name, inner in given.items():
        where = f"{field}.{name}"
        match name:
            case "type":
                kind = as_text(inner, where).lower()
                if kind == "type_unspecified":
                    continue
                if kind not in _TYPES:
                    raise WireError(where, f"{inner!r} is not one of {', '.join(sorted(_TYPES)).upper()}")
                schema["type"] = kind
            case "properties" | "defs" | "$defs":
                schema[_RENAMED.get(name, name)] = {
                    key: json_schema(each, f"{where}.{key}") for key, each in as_object(inner, where).items()
                }
            case "items":
                schema[name] = json_schema(inner, where)
            case "additionalProperties":
                schema[name] = inner if isinstance(inner, bool) else json_schema(inner, where)
            case "anyOf":
                schema[name] = [json_schema(each, f"{where}.{n}") for n, each in enumerate(as_list(inner, where))]
            case "example":
                schema["examples"] = [inner]
            case _ if name in _COUNTS:
                schema[name] = _count(inner, where)
            case _ if name not in _DROPPED:
                schema[_RENAMED.get(name, name)] = inner
    if given.get("nullable"):
        _allow_null(schema)
    return schema


def _count(value: object, field: str) -> object:
    """64-bit numbers are texts in Google's JSON."""
    if not isinstance(value, str):
        return value
    try:
        return int(value)
    except ValueError as error:
        raise WireError(field, f"expected a number, this is {value[:40]!r}") from error


def _allow_null(schema: JsonObject) -> None:
    if "type" in schema:
        schema["type"] = [schema["type"], "null"]
    elif "anyOf" in schema:
        schema["anyOf"].append({"type": "null"})
    if isinstance(schema.get("enum"), list) and None not in schema["enum"]:
        schema["enum"] = [*schema["enum"], None]
