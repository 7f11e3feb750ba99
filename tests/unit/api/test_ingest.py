"""Rows are read and checked; an error names the place and the fault."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.ingest import RowReader, check_defaults
from gym.environments.registry import Registry, load_registry
from gym.errors import Invalid, Malformed, RequestError, TooLarge

ROW: dict[str, Any] = {"environment": "weather", "responses_create_params": {"input": "Oslo?"}}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load_registry()


def reader(registry: Registry, *, environment: str | None = None) -> RowReader:
    return RowReader(
        registry=registry,
        known=frozenset(registry.names()),
        default_environment=environment,
        default_samples=3,
        max_row_bytes=1000,
    )


def test_a_line_keeps_its_own_bytes(registry: Registry) -> None:
    raw = orjson.dumps(ROW, option=orjson.OPT_INDENT_2).replace(b"\n", b" ")
    read = reader(registry).read_line(raw, row=0, line=1)
    assert read.raw == raw
    assert (read.header.environment, read.header.num_samples, read.digest) == ("weather", 3, "")


def test_a_row_with_a_task_id_has_a_digest_that_ignores_the_order_of_keys(registry: Registry) -> None:
    row = {**ROW, "task_id": "t"}
    turned = dict(reversed(row.items()))
    first, second = (reader(registry).read_value(value, row=0).digest for value in (row, turned))
    assert first == second != ""


def test_a_line_that_is_not_json_names_line_row_and_position(registry: Registry) -> None:
    with pytest.raises(Malformed) as caught:
        reader(registry).read_line(b'{"a": NaN}', row=6, line=8)
    assert caught.value.code == "malformed_json"
    assert caught.value.details == {
        "position": 6,
        "reason": "unexpected character, expected a JSON value",
        "line": 8,
        "row": 6,
        "field": "",
    }


def test_an_unknown_environment_names_the_row_and_what_was_perhaps_meant(registry: Registry) -> None:
    with pytest.raises(Invalid, match="did you mean `weather`") as caught:
        reader(registry).read_value({**ROW, "environment": "wether"}, row=4)
    assert caught.value.code == "unknown_environment"
    assert (caught.value.details["row"], caught.value.details["field"]) == (4, "environment")


def test_an_unknown_agent_names_the_row(registry: Registry) -> None:
    with pytest.raises(Invalid, match=r"row 2, field `agent`.*tool_loop"):
        reader(registry).read_value({**ROW, "agent": "looper"}, row=2)


def test_a_row_that_its_environment_refuses_names_the_field(registry: Registry) -> None:
    row = {"environment": "stateful_counter", "responses_create_params": {"input": "x"}, "initial_count": "many"}
    with pytest.raises(Invalid) as caught:
        reader(registry).read_line(orjson.dumps(row), row=1, line=2)
    assert caught.value.details["line"] == 2
    assert caught.value.details["field"] in orjson.dumps(registry.get("stateful_counter").row_schema).decode()


def test_a_row_over_the_limit_names_itself(registry: Registry) -> None:
    with pytest.raises(TooLarge) as caught:
        reader(registry).read_value({**ROW, "blob": "x" * 1000}, row=5)
    assert caught.value.details["row"] == 5


@pytest.mark.parametrize("as_line", [True, False])
def test_a_row_that_is_nested_too_deep_is_refused(registry: Registry, as_line: bool) -> None:
    def row(levels: int) -> bytes:
        return orjson.dumps(ROW)[:-1] + b',"deep":' + b"[" * levels + b"]" * levels + b"}"

    def read(raw: bytes) -> None:
        if as_line:
            reader(registry).read_line(raw, row=0, line=1)
        else:
            reader(registry).read_value(orjson.loads(raw), row=0)

    read(row(251))
    with pytest.raises(Invalid, match="nested deeper"):
        read(row(252))


@given(value=JSON)
def test_any_json_is_read_or_refused(registry: Registry, value: Any) -> None:
    for candidate in (value, {**ROW, "responses_create_params": value}, {**ROW, "num_samples": value}):
        try:
            raw = orjson.dumps(candidate)
        except TypeError:
            continue
        refused: RequestError | None = None
        try:
            reader(registry, environment="weather").read_line(raw, row=0, line=1)
        except RequestError as error:
            refused = error
        assert refused is None or refused.details["row"] == 0


def test_what_a_batch_names_for_its_rows_is_checked(registry: Registry) -> None:
    check_defaults(registry, "weather", "single_turn")
    with pytest.raises(Invalid, match="field `environment`") as caught:
        check_defaults(registry, "wether", None)
    assert "row" not in caught.value.details
    with pytest.raises(Invalid, match="field `agent`"):
        check_defaults(registry, None, "looper")
