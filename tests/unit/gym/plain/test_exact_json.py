"""JSON and msgpack that keep integers of any length, and refuse what cannot be kept."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gym.plain import exact_json, exact_msgpack

LONG = 123456789012345678901234567890
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**40), 10**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("ab0.é", max_size=25), inner, max_size=4),
    max_leaves=12,
)


@given(value=PLAIN)
def test_what_is_written_is_read_again(value: Any) -> None:
    written = exact_json.dumps(value)
    for data in (written, bytearray(written), written.decode(), json.dumps(value).encode()):
        found = exact_json.loads(data)
        assert repr(found) == repr(value)
    assert repr(exact_msgpack.unpackb(exact_msgpack.packb(value))) == repr(value)


@pytest.mark.parametrize("long", [2**64, -(2**63) - 1, LONG, 10**18, 10**19, 10**400])
@pytest.mark.parametrize("around", ["{}", "[{}]", '{{"a":{}}}', '{{"a": {}, "b": 1.5}}', "[0.5,{}]"])
def test_integers_keep_their_digits_wherever_they_stand(long: int, around: str) -> None:
    text = around.format(long)
    assert exact_json.loads(text) == exact_json.loads(text.encode()) == json.loads(text)
    assert str(long).encode() in exact_json.dumps(exact_json.loads(text))


@pytest.mark.parametrize("beside", ["", f", {LONG}"], ids=["alone", "beside 30 digits"])
@pytest.mark.parametrize(
    "text", ["NaN", "-Infinity", "1e999", "-1e999", '"\\ud83c"', "7" * 5000, "[" * 3000 + "]" * 3000, "'a'", "01"]
)
def test_what_cannot_be_kept_is_refused(text: str, beside: str) -> None:
    for data in (f"[{text}{beside}]", f"[{text}{beside}]".encode()):
        with pytest.raises(orjson.JSONDecodeError):
            exact_json.loads(data)


def test_half_a_pair_of_surrogates_in_the_text_is_refused() -> None:
    with pytest.raises(orjson.JSONDecodeError):
        exact_json.loads('["\ud83c"]')


def test_half_a_pair_of_surrogates_is_written_escaped() -> None:
    assert exact_json.dumps({"q": "é\ud83c", "n": LONG}) == b'{"q":"\\u00e9\\ud83c","n":%d}' % LONG


def test_depth_is_a_value_error_and_never_a_recursion_error() -> None:
    value: Any = 1
    for _ in range(100_000):
        value = [value]
    with pytest.raises(ValueError, match="nested too deeply"):
        exact_json.dumps(value)
    with pytest.raises(ValueError, match="deeper than 254"):
        exact_json.dumps_flat(value)
    assert exact_json.is_deeper(value, 99_999)
    while value != 1:  # an interpreter frees deep lists by recursion
        value = value[0]


@pytest.mark.parametrize("name", [1, None, 1.5, True])
def test_a_name_that_is_no_text_is_a_type_error_beside_a_long_integer_too(name: object) -> None:
    with pytest.raises(TypeError, match="key must be"):
        exact_json.dumps([{"a": LONG}, {"b": {name: 1}}])


@pytest.mark.parametrize("innermost", [1, [], {}])
@pytest.mark.parametrize("levels", [0, 1, 7])
def test_depth_counts_objects_and_lists(levels: int, innermost: object) -> None:
    value: Any = innermost
    levels += innermost != 1
    for number in range(levels - (innermost != 1)):
        value = [0, value] if number % 2 else {"a": value, "b": 0}
    assert not exact_json.is_deeper(value, levels)
    assert levels == 0 or exact_json.is_deeper(value, levels - 1)


def test_keys_are_sorted_alike_with_and_without_long_integers() -> None:
    assert exact_json.dumps({"b": LONG, "a": {"d": 1, "c": 2}}, sort_keys=True) == b'{"a":{"c":2,"d":1},"b":%d}' % LONG


def test_json_that_is_written_already_stays_beside_a_long_integer() -> None:
    value = {"ids": orjson.Fragment(b"[1,2]"), "n": LONG}
    assert exact_json.loads(exact_json.dumps(value)) == {"ids": [1, 2], "n": LONG}


def test_what_is_not_plain_is_a_type_error_or_told_to_default() -> None:
    with pytest.raises(TypeError):
        exact_json.dumps({"a": object(), "b": LONG})
    assert exact_json.dumps({"a": {1}, "b": LONG}, default=str) == b'{"a":"{1}","b":%d}' % LONG
    with pytest.raises(TypeError):
        exact_msgpack.packb({"a": object()})
