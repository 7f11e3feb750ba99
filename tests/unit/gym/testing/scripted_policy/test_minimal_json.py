"""The smallest values of JSON schemas."""

from typing import Any

import pytest

from gym.testing.scripted_policy.minimal_json import minimal_value

PERSON = {"type": "object", "properties": {"name": {"type": "string", "minLength": 2}}, "required": ["name"]}


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "string"}, ""),
        ({"type": "integer"}, 0),
        ({"type": "integer", "minimum": 3}, 3),
        ({"type": "integer", "exclusiveMinimum": 3}, 4),
        ({"type": "integer", "maximum": -2}, -2),
        ({"type": "integer", "minimum": 1, "multipleOf": 5}, 5),
        ({"type": "boolean"}, False),
        ({"type": "null"}, None),
        ({"type": ["null", "integer"]}, 0),
        ({"enum": ["b", "a"]}, "b"),
        ({"const": 7}, 7),
        ({"type": "array", "items": {"type": "integer"}}, []),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 2}, [0, 0]),
        ({"anyOf": [{"type": "null"}, {"type": "integer"}]}, 0),
        (PERSON, {"name": "xx"}),
        (
            {"allOf": [PERSON, {"required": ["age"], "properties": {"age": {"type": "integer"}}}]},
            {"name": "xx", "age": 0},
        ),
        ({"$ref": "#/$defs/person", "$defs": {"person": PERSON}}, {"name": "xx"}),
        ({}, ""),
    ],
)
def test_the_value_is_the_smallest_that_fits(schema: dict[str, Any], value: Any) -> None:
    assert minimal_value(schema) == value


def test_a_schema_that_needs_itself_ends() -> None:
    node = {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]}
    assert isinstance(minimal_value(node), dict)
