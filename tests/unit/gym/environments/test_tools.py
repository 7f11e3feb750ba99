from __future__ import annotations

import contextlib
import functools
import json
from enum import StrEnum
from typing import Annotated, Any, Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from gym.environments.base import Environment, Row, tool
from gym.environments.tools import BadArguments, ToolSpec, decode_arguments, tools_of


class Side(StrEnum):
    LEFT = "left"
    RIGHT = "right"


class Point(BaseModel):
    x: int
    title: str


class Bare(Environment[Row]):
    """An environment to hang tools on."""

    name = "bare"

    def verify(self, trajectory: Any) -> float:
        return 0.0

    @classmethod
    def example_row(cls) -> dict[str, Any]:
        return {}


class Toolbox(Bare):
    @tool
    def label(
        self,
        count: Annotated[int, Field(ge=0, description="How many.")],
        text: str,
        ratio: float = 1.0,
        tags: list[str] | None = None,
    ) -> str:
        """Make a label
        over two lines.

        This paragraph is for the author.
        """
        return f"{count} {text} {ratio} {tags}"

    @tool
    async def place(self, at: Point, side: Side, mode: Literal["soft", "hard"]) -> str:
        """Put it somewhere."""
        return f"{at} {side} {mode}"

    @tool
    def reserved(self, schema: int, copy: bool, _private: str = "") -> int:
        return schema

    @tool
    @staticmethod
    def fixed(value: int) -> int:
        """Take it as it is."""
        return value

    def not_offered(self) -> None: ...


def spec(name: str) -> ToolSpec:
    return next(each for each in tools_of(Toolbox) if each.name == name)


def test_tools_come_in_the_order_they_are_written_and_only_the_marked_ones() -> None:
    assert [each.name for each in tools_of(Toolbox)] == ["label", "place", "reserved", "fixed"]


def test_a_schema_is_a_closed_function_tool_of_the_responses_api() -> None:
    assert spec("label").schema == {
        "type": "function",
        "name": "label",
        "description": "Make a label over two lines.",
        "parameters": {
            "type": "object",
            "properties": {
                "count": {"type": "integer", "minimum": 0, "description": "How many."},
                "text": {"type": "string"},
                "ratio": {"type": "number", "default": 1.0},
                "tags": {"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}], "default": None},
            },
            "required": ["count", "text"],
            "additionalProperties": False,
        },
        "strict": False,
    }


def test_a_tool_without_parameters_has_an_empty_closed_schema() -> None:
    class Silent(Bare):
        @tool
        def look(self) -> str:
            return ""

    (only,) = tools_of(Silent)
    assert only.schema["parameters"] == {
        "type": "object",
        "properties": {},
        "required": [],
        "additionalProperties": False,
    }
    assert only.schema["strict"] is True
    assert only.schema["description"] == ""


def test_strict_is_promised_only_where_every_parameter_is_required_and_no_object_is_open() -> None:
    class Mixed(Bare):
        @tool
        def closed(self, at: list[Point]) -> None: ...

        @tool
        def optional(self, at: int = 0) -> None: ...

        @tool
        def opened(self, at: dict[str, int]) -> None: ...

    assert [each.schema["strict"] for each in tools_of(Mixed)] == [True, False, False]


def test_a_nested_model_keeps_a_property_called_title_and_loses_generated_titles() -> None:
    point = spec("place").schema["parameters"]["$defs"]["Point"]
    assert point["properties"] == {"x": {"type": "integer"}, "title": {"type": "string"}}
    assert point["additionalProperties"] is False
    assert "title" not in {key for key in point if key != "properties"}


def test_arguments_become_what_the_type_hints_say() -> None:
    read = spec("place").read_arguments('{"at": {"x": 1, "title": "a"}, "side": "left", "mode": "hard"}')
    assert read == {"at": Point(x=1, title="a"), "side": Side.LEFT, "mode": "hard"}


def test_left_out_arguments_are_left_to_the_method() -> None:
    assert spec("label").read_arguments('{"count": 1, "text": "a"}') == {"count": 1, "text": "a"}


def test_parameters_may_have_names_that_models_reserve() -> None:
    read = spec("reserved").read_arguments('{"schema": 1, "copy": true, "_private": "x"}')
    assert read == {"schema": 1, "copy": True, "_private": "x"}


def test_a_static_method_keeps_its_first_parameter() -> None:
    assert spec("fixed").read_arguments('{"value": 3}') == {"value": 3}


@pytest.mark.parametrize("text", ["", "  ", "{}"])
def test_a_blank_text_is_no_arguments(text: str) -> None:
    assert decode_arguments(text) == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"count": "3", "text": "a"}', "count: Input should be a valid integer"),
        ('{"count": true, "text": "a"}', "count: Input should be a valid integer"),
        ('{"count": -1, "text": "a"}', "count: Input should be greater than or equal to 0"),
        ('{"text": "a"}', "count: Field required"),
        ('{"count": 1, "text": "a", "colour": 2}', "colour: Extra inputs are not permitted"),
        ('{"count": 1, "text": "a", "tags": [1]}', "tags.0: Input should be a valid string"),
    ],
)
def test_wrong_arguments_name_the_tool_and_the_field(text: str, said: str) -> None:
    with pytest.raises(BadArguments) as caught:
        spec("label").read_arguments(text)
    assert str(caught.value) == f"bad arguments of label: {said}"


def test_only_the_first_problems_are_told() -> None:
    with pytest.raises(BadArguments, match=r"; and 7 more$"):
        spec("label").read_arguments(json.dumps({str(number): 1 for number in range(10)}))


@pytest.mark.parametrize(
    "text", ["[1]", "3", '"a"', "null", "{", '{"a": NaN}', "\ud800", '{"a": "\\ud800"}', "[" * 9999]
)
def test_what_is_not_a_json_object_is_no_arguments(text: str) -> None:
    with pytest.raises(BadArguments):
        decode_arguments(text)


def test_a_method_that_cannot_be_a_tool_is_refused_with_its_place() -> None:
    class Untyped(Bare):
        @tool
        def look(self, where) -> str: ...  # type: ignore[no-untyped-def]

    class Variadic(Bare):
        @tool
        def look(self, *where: int) -> None: ...

    class Hidden(Bare):
        @tool
        def _look(self) -> None: ...

    class Overridden(Bare):
        @tool
        def setup(self) -> None: ...

    class Unknown(Bare):
        @tool
        def look(self, where: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    for cls, said in (
        (Untyped, "parameter `where` has no type hint"),
        (Variadic, r"parameter `\*where: 'int'` cannot be passed by name"),
        (Hidden, "a tool's name is public"),
        (Overridden, "not one of Environment"),
        (Unknown, "its type hints cannot be read, name 'Nowhere' is not defined"),
    ):
        with pytest.raises(TypeError, match=said):
            tools_of(cls)


def test_an_override_is_a_tool_only_when_it_is_marked_too() -> None:
    class Fewer(Toolbox):
        def label(self) -> None: ...  # type: ignore[override]

    assert [each.name for each in tools_of(Fewer)] == ["place", "reserved", "fixed"]


def test_a_decorated_tool_keeps_its_signature_and_is_async_when_what_it_wraps_is() -> None:
    def logged(method: Any) -> Any:
        @functools.wraps(method)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return method(*args, **kwargs)

        return wrapper

    class Logged(Bare):
        @logged
        @tool
        async def look(self, where: int) -> None: ...

    (only,) = tools_of(Logged)
    assert only.is_async
    assert only.read_arguments('{"where": 1}') == {"where": 1}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def fits(arguments: dict[str, Any]) -> bool:
    """What `Toolbox.label` takes, written down a second time."""
    is_number = {int: True, float: True}
    return (
        set(arguments) <= {"count", "text", "ratio", "tags"}
        and type(arguments.get("count")) is int
        and arguments["count"] >= 0
        and isinstance(arguments.get("text"), str)
        and is_number.get(type(arguments.get("ratio", 1.0)), False)
        and (
            arguments.get("tags") is None
            or (isinstance(arguments["tags"], list) and all(isinstance(tag, str) for tag in arguments["tags"]))
        )
    )


likely = {"count": st.integers() | json_values, "text": st.text() | json_values}
sometimes = {
    "ratio": st.floats(allow_nan=False) | json_values,
    "tags": st.lists(st.text()) | json_values,
    "x": st.none(),
}


@given(st.fixed_dictionaries(likely, optional=sometimes))
@example({"count": 0, "text": "", "ratio": 1, "tags": None})
def test_exactly_what_the_schema_allows_is_accepted_and_comes_out_unchanged(arguments: dict[str, Any]) -> None:
    text = json.dumps(arguments)
    if fits(arguments):
        assert spec("label").read_arguments(text) == arguments
    else:
        with pytest.raises(BadArguments):
            spec("label").read_arguments(text)


@given(st.text() | json_values.map(json.dumps))
def test_no_text_makes_reading_arguments_raise_anything_else(text: str) -> None:
    for read in (decode_arguments, spec("label").read_arguments, spec("fixed").read_arguments):
        with contextlib.suppress(BadArguments):
            assert isinstance(read(text), dict)
