"""Tools from methods: one marked `@tool` becomes a function tool of the Responses API and a check of its arguments.

The schema says what the check accepts: types are strict (a text is not a number), unknown arguments are refused. A
parameter's documentation comes from `Annotated[…, Field(description=…)]`, the tool's from its docstring's first
paragraph. Nothing here calls a tool; `gym.environments.hosting.session` does.
"""

from __future__ import annotations

import inspect
import re
import typing
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from gym.environments.base import TOOL_MARK, Environment
from gym.jsontypes import JsonObject
from gym.plain import exact_json

_NAME = re.compile(r"^[a-zA-Z][a-zA-Z0-9_-]{0,63}$")
_SHOWN_PROBLEMS = 5


class BadArguments(ValueError):
    """Error for arguments of a model that do not fit the tool; the text is for the model."""


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool of an environment. `schema` is a Responses function tool, ready to be offered."""

    name: str
    schema: JsonObject
    is_async: bool
    _arguments: type[BaseModel] = field(repr=False)

    def read_arguments(self, text: str) -> dict[str, Any]:
        """Return the keyword arguments of a JSON text; omitted ones use the method's defaults.

        A blank text is an empty object, as some servers send for a tool without parameters. Raises BadArguments.
        """
        try:
            read = self._arguments.model_validate_json(text if text.strip() else "{}")
        except ValidationError as error:
            found = [f"{name}: {message}" if name else message for name, message in problems(error)]
            more = f"; and {len(found) - _SHOWN_PROBLEMS} more" if len(found) > _SHOWN_PROBLEMS else ""
            raise BadArguments(f"bad arguments of {self.name}: {'; '.join(found[:_SHOWN_PROBLEMS])}{more}") from None
        parameters = type(read).model_fields
        return {str(parameters[given].alias): getattr(read, given) for given in read.model_fields_set}


def decode_arguments(text: str, *, most_chars: int | None = None) -> JsonObject:
    """Decode arguments as plain JSON, for the record. Raises BadArguments if too long, or not a JSON object."""
    if most_chars is not None and len(text) > most_chars:
        raise BadArguments(f"the arguments are {len(text)} characters long; at most {most_chars} are taken")
    try:
        decoded = exact_json.loads(text) if text.strip() else {}
    except ValueError as error:
        raise BadArguments(f"the arguments are not valid JSON: {error}") from None
    if not isinstance(decoded, dict):
        raise BadArguments(f"the arguments must be a JSON object, not {type(decoded).__name__}")
    return decoded


def tools_of(cls: type[Environment[Any]]) -> tuple[ToolSpec, ...]:
    """Return the tools of an environment class, base classes first, in the order of their definition.

    An override is a tool only if it is marked too. Raises TypeError for a method that cannot be a tool.
    """
    names = dict.fromkeys(name for base in reversed(cls.__mro__) for name in vars(base))
    return tuple(_tool_of(cls, name) for name in names if _is_marked(cls, name))


def problems(error: ValidationError) -> list[tuple[str, str]]:
    """Return validation errors as (field, message); the field is its path in the data, joined by dots."""
    return [
        (".".join(str(part) for part in item["loc"]), item["msg"])
        for item in error.errors(include_url=False, include_context=False, include_input=False)
    ]


def _is_marked(cls: type[Environment[Any]], name: str) -> bool:
    raw = inspect.getattr_static(cls, name, None)
    return bool(getattr(raw, TOOL_MARK, False) or getattr(getattr(raw, "__func__", None), TOOL_MARK, False))


def _tool_of(cls: type[Environment[Any]], name: str) -> ToolSpec:
    place = f"tool {cls.__qualname__}.{name}"
    if not _NAME.match(name) or hasattr(Environment, name):
        raise TypeError(f"{place}: a tool's name is public, at most 64 letters and digits, and not one of Environment")
    method = getattr(cls, name)
    if not callable(method):
        raise TypeError(f"{place} is not a method")
    arguments = _arguments_model(cls, name, place)
    parameters = arguments.model_json_schema()
    strict = _tidy(parameters)
    schema: JsonObject = {
        "type": "function",
        "name": name,
        "description": _first_paragraph(method),
        "parameters": {"type": "object", "properties": {}, "required": [], **parameters},
        "strict": strict,
    }
    return ToolSpec(name, schema, inspect.iscoroutinefunction(inspect.unwrap(method)), arguments)


def _arguments_model(cls: type[Environment[Any]], name: str, place: str) -> type[BaseModel]:
    """Return a model whose fields are renamed, since pydantic reserves some names that parameters may have."""
    method = getattr(cls, name)
    parameters = list(inspect.signature(method).parameters.values())
    if not isinstance(inspect.getattr_static(cls, name), staticmethod | classmethod):
        del parameters[:1]
    try:
        hints = typing.get_type_hints(inspect.unwrap(getattr(method, "__func__", method)), include_extras=True)
    except NameError as error:
        raise TypeError(f"{place}: its type hints cannot be read, {error}") from error
    fields: dict[str, Any] = {}
    for number, parameter in enumerate(parameters):
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(f"{place}: parameter `{parameter}` cannot be passed by name")
        if parameter.name not in hints:
            raise TypeError(f"{place}: parameter `{parameter.name}` has no type hint")
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[f"p{number}"] = (Annotated[hints[parameter.name], Field(alias=parameter.name)], default)
    return create_model(f"{name}_arguments", __config__=ConfigDict(extra="forbid", strict=True), **fields)


def _first_paragraph(method: object) -> str:
    return " ".join((inspect.getdoc(method) or "").split("\n\n")[0].split())


def _tidy(schema: JsonObject) -> bool:
    """Remove generated titles and close objects, in place.

    Returns whether the schema meets the rules of `strict: true`.

    Those rules: every property is required, no object is open.
    https://platform.openai.com/docs/guides/structured-outputs#supported-schemas
    """
    schema.pop("title", None)
    strict = True
    if schema.get("type") == "object":
        properties = schema.get("properties", {})
        if "properties" in schema:
            schema.setdefault("additionalProperties", False)
        strict = schema.get("additionalProperties") is False and set(schema.get("required", ())) == set(properties)
    children: list[Any] = [*schema.get("properties", {}).values(), *schema.get("$defs", {}).values()]
    children += [schema.get("items"), schema.get("additionalProperties")]
    for key in ("anyOf", "oneOf", "allOf", "prefixItems"):
        children.extend(schema.get(key, ()))
    tidied = [_tidy(child) for child in children if isinstance(child, dict)]
    return strict and all(tidied)
