"""Checking and encoding of rows to send."""

from datetime import date
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gym.client.rows import MAX_REQUEST_ROWS, EncodedRows, encode_rows, refused
from gym.errors import Invalid
from gym.jsontypes import JsonObject

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


def row(**more: Any) -> JsonObject:
    return {"responses_create_params": {"input": "Hello"}, **more}


def encode(*rows: JsonObject) -> EncodedRows:
    return encode_rows(rows, id_prefix="row", environment="weather", num_samples=2)


@given(data=st.dictionaries(st.text().filter(lambda name: name not in ("task_id", "num_samples")), VALUES, max_size=4))
def test_a_row_arrives_as_it_was_with_an_id(data: dict[str, Any]) -> None:
    sent = row(extra=data)
    (line,) = encode(sent).lines
    assert orjson.loads(line) == {**sent, "task_id": "row-0"}
    assert b"\n" not in line


def test_an_id_that_the_caller_gave_stays_and_one_that_is_null_is_made() -> None:
    lines = [orjson.loads(line) for line in encode(row(task_id="mine"), row(task_id=None)).lines]
    assert [line["task_id"] for line in lines] == ["mine", "row-1"]


def test_rollouts_are_counted_with_each_rows_own_samples() -> None:
    assert encode(row(), row(num_samples=5)).rollouts == 7


@pytest.mark.parametrize(
    ("bad", "field", "words"),
    [
        ({"a": {"b": [1, {1, 2}]}}, "a.b.1", "set"),
        ({"day": {"when": object()}}, "day.when", "object"),
        ({"score": [0.5, float("nan")]}, "score.1", "nan"),
        ({"names": {1: "one"}}, "names", "key 1"),
        ({"text": "\ud800"}, "text", "str"),
    ],
)
def test_a_value_without_a_form_in_json_is_named(bad: JsonObject, field: str, words: str) -> None:
    with pytest.raises(Invalid) as caught:
        encode(row(), row(**bad))
    assert caught.value.details == {"row": 1, "field": field}
    assert words in caught.value.message


def test_an_integer_of_any_length_is_sent_as_it_is() -> None:
    (line,) = encode(row(big=2**70)).lines
    assert b'"big":%d' % 2**70 in line


def test_a_row_nested_too_deep_is_named() -> None:
    deep: Any = "bottom"
    for _ in range(300):
        deep = [deep]
    with pytest.raises(Invalid, match="nested deeper"):
        encode(row(deep=deep))


def test_a_date_and_an_honest_null_are_fine() -> None:
    assert orjson.loads(encode(row(day=date(2026, 1, 2), nothing=None)).lines[0])["day"] == "2026-01-02"


def test_a_row_without_an_input_is_refused_here_already() -> None:
    with pytest.raises(Invalid) as caught:
        encode({"responses_create_params": {}})
    assert caught.value.details["field"] == "responses_create_params.input"


def test_many_rows_are_cut_into_requests_in_order_and_none_is_lost() -> None:
    lines = [b'{"n":%d}' % number for number in range(MAX_REQUEST_ROWS + 5)]
    bodies = [b"".join(body) for body in EncodedRows(lines, len(lines)).requests()]
    assert [body.count(b"\n") for body in bodies] == [MAX_REQUEST_ROWS, 5]
    assert b"".join(bodies).splitlines() == lines


def test_large_rows_are_cut_by_size() -> None:
    line = b'"' + b"x" * (20 * 2**20) + b'"'
    assert [len(body) for body in EncodedRows([line, line], 2).requests()] == [1, 1]
    assert not EncodedRows([line], 1).fit_one_request


def test_a_refusal_of_a_later_request_names_the_row_of_the_submission() -> None:
    error = refused(Invalid("invalid_row", "line 3, field `a`", {"row": 2, "line": 3, "field": "a"}), first_row=100)
    assert error.details == {"row": 102, "row_in_request": 2, "field": "a"}
    assert "row 102" in error.message
