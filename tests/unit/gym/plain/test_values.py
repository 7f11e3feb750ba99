"""Values of user code as plain data."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction
from typing import Any

import numpy as np
import orjson
import pytest

from gym.errors import EnvironmentFailed
from gym.judges.base import Ask, Question
from gym.plain import exact_json
from gym.plain.values import MOST_DEPTH, NotPlain, TooLarge, cut_text, number, plain, shown, shown_in_part, truth
from gym.reward import Reward


class Tensor:
    """A scalar as torch's are: known by `item()` alone."""

    def __init__(self, held: Any) -> None:
        self.held = held

    def item(self) -> Any:
        return self.held


class Level(IntEnum):
    HIGH = 3


class Awkward:
    """Its methods raise."""

    def __float__(self) -> float:
        raise RuntimeError("not now")

    def tolist(self) -> list[float]:
        raise RuntimeError("not now")


LONG = 123456789012345678901234567890
NUMBERS: list[tuple[Any, float]] = [
    (0.5, 0.5),
    (3, 3.0),
    (True, 1.0),
    (LONG, float(LONG)),
    (Level.HIGH, 3.0),
    (Decimal("0.5"), 0.5),
    (Fraction(1, 2), 0.5),
    (Tensor(0.5), 0.5),
    (Tensor(np.float32(0.5)), 0.5),
    (np.array(0.5), 0.5),
    (np.array([0.5]), 0.5),
    (np.bool_(True), 1.0),
    *((kind(1), 1.0) for kind in (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64)),
    *((kind(0.5), 0.5) for kind in (np.float16, np.float32, np.float64, np.longdouble)),
]
NO_NUMBERS: list[Any] = [
    None,
    "1.0",
    b"1",
    math.nan,
    -math.inf,
    10**400,
    10**5000,
    1j,
    Decimal("NaN"),
    np.float64("nan"),
    np.float32("inf"),
    np.complex64(1),
    np.str_("1"),
    np.ma.masked,
    np.array([1.0, 2.0]),
    np.datetime64("2020-01-01"),
    [1.0],
    {1},
    object(),
    Tensor("1"),
    Awkward(),
]


@pytest.mark.parametrize(("value", "same"), NUMBERS)
def test_finite_numbers_and_booleans_of_any_library_are_exact_floats(value: Any, same: float) -> None:
    found = number(value, "reward")
    assert (type(found), found) == (float, same)


@pytest.mark.parametrize("value", NO_NUMBERS, ids=lambda value: type(value).__name__)
def test_anything_else_is_no_number_and_the_text_names_field_and_type(value: Any) -> None:
    with pytest.raises(NotPlain, match=r"^reward is ") as caught:
        number(value, "reward")
    assert type(value).__qualname__ in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(("value", "same"), [(True, True), (np.bool_(False), False), (1, True), (np.int64(0), False)])
def test_booleans_of_any_library_are_exact(value: Any, same: bool) -> None:
    assert truth(value, "done") is same


@pytest.mark.parametrize("value", [None, 2, "yes", [], np.array([True, False]), math.nan])
def test_what_is_neither_true_nor_false_is_refused(value: Any) -> None:
    with pytest.raises(NotPlain, match=r"^done is "):
        truth(value, "done")


def test_a_reward_and_its_components_are_exact_floats() -> None:
    made = Reward(np.float64(0.5), {"share": np.float32(0.25), "right": True, np.str_("count"): np.int64(2)})
    assert (type(made.value), made.value) == (float, 0.5)
    assert made.components == {"share": 0.25, "right": 1.0, "count": 2.0}
    assert {type(name) for name in made.components} == {str}
    assert {type(value) for value in made.components.values()} == {float}


@pytest.mark.parametrize(
    ("components", "said"),
    [
        ({"share": math.nan}, r"^reward_components\.share is nan"),
        ({"share": {1}}, r"^reward_components\.share is a value of type set"),
        ({1: 0.5}, "^a name in reward_components is 1"),
        ([0.5], "^reward_components is of type list"),
    ],
)
def test_components_that_are_none_are_named(components: Any, said: str) -> None:
    with pytest.raises(NotPlain, match=said):
        Reward(1.0, components)


def test_arrays_scalars_and_tuples_become_lists_and_numbers() -> None:
    facts = {"grid": np.arange(4).reshape(2, 2), "mean": np.float32(0.5), "pair": (1, np.bool_(True)), "none": None}
    assert plain(facts, "facts") == {"grid": [[0, 1], [2, 3]], "mean": 0.5, "pair": [1, True], "none": None}


def test_what_is_plain_already_is_not_copied() -> None:
    value = {"a": [1, 2.5, "é", None, {"b": LONG}]}
    assert plain(value, "facts") is value


def circular() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["self"] = [value]
    return value


def deep() -> list[Any]:
    value: list[Any] = []
    for _ in range(MOST_DEPTH + 1):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"tags": {"a"}}, r"^facts\.tags is a value of type set, which JSON cannot hold"),
        ({"raw": b"x"}, r"^facts\.raw is a value of type bytes"),
        ({"list": [0, object()]}, r"^facts\.list\[1\] is a value of type object"),
        ({"text": "\ud83c"}, r"^facts\.text is a text with half of a surrogate pair"),
        ({"mean": np.float64("nan")}, r"^facts\.mean is "),
        ({"means": np.array([1.0, np.inf])}, r"^facts\.means\[1\] is inf"),
        ({1: "a"}, "^facts has a key of type int"),
        ({(1, 2): "a"}, "^facts has a key of type tuple"),
        ({"odd": Awkward()}, r"^facts\.odd is a value of type .*Awkward"),
        (circular(), "nested more than 200 levels deep, or holds itself"),
        (deep(), "nested more than 200 levels deep"),
    ],
)
def test_what_json_cannot_hold_is_named_with_its_place_and_type(value: Any, said: str) -> None:
    with pytest.raises(NotPlain, match=said):
        plain(value, "facts")


def test_what_is_shown_has_its_keys_as_texts_and_no_half_characters() -> None:
    assert shown({1: "a\ud800", False: 1, None: 2, np.int64(3): 4}, "x") == {"1": "a?", "false": 1, "null": 2, "3": 4}
    with pytest.raises(NotPlain, match="two keys that are both written '1'"):
        shown({1: "a", "1": "b"}, "x")


@pytest.mark.parametrize("value", [["x" * 600, "y" * 600], np.zeros(10**6), {"k": list(range(1000))}])
def test_what_takes_too_many_bytes_is_refused(value: Any) -> None:
    with pytest.raises(TooLarge):
        shown(value, "x", most_bytes=1000)


@pytest.mark.parametrize("value", [["x" * 600, "y" * 10**6, "z"], [{"a": n} for n in range(10**5)]])
def test_of_what_is_shown_in_part_no_more_than_that_is_copied(value: Any) -> None:
    found, whole = shown_in_part(value, "x", most_bytes=1000)
    assert not whole
    assert len(orjson.dumps(found)) < 3000


@pytest.mark.parametrize(
    ("text", "kept"), [("abc", "abc"), ("a" * 20, "a" * 9), ("é" * 20, "éééé"), ("a\ud800b", "a?b")]
)
def test_texts_are_cut_between_characters(text: str, kept: str) -> None:
    assert cut_text(text, 9) == (kept, len(text) < 9)


@pytest.mark.parametrize("write", [exact_json.dumps, lambda value: orjson.dumps({"n": 1}) and exact_json.dumps(value)])
def test_long_integers_keep_their_digits(write: Callable[[Any], bytes]) -> None:
    value = {"account": LONG, "small": -(2**63), "list": [2**64, 1.5, "é"]}
    assert exact_json.loads(write(value)) == value
    assert exact_json.loads(write(value).decode()) == value


@pytest.mark.parametrize("text", [b"{", b'{"a": NaN}', b'"\\ud83c"', b"[" * 5000, b"1" * 5000])
def test_what_is_no_json_is_a_value_error(text: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  its texts are those of two libraries
        exact_json.loads(text)


def test_facts_of_an_ask_come_back_as_they_were() -> None:
    ask = Ask([Question(judge="j", answer=np.str_("yes"))], {"weight": np.float64(0.5), "account": LONG})  # type: ignore[arg-type]
    again = Ask.unpack(ask.pack())
    assert again == ask
    assert again.facts == {"weight": 0.5, "account": LONG}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Ask((Question(judge="j", answer="a"),), {"tags": {1}}), r"facts\.tags is a value of type set"),
        (lambda: Ask((Question(judge="j", answer="a"),), [1]), "facts is of type list"),
        (lambda: Question(judge="j", answer=5), "a question's answer is 5"),
        (lambda: Question(judge="j", answer="a", extra={"rubric": None}), r"a question's extra\.rubric is None"),
    ],
)
def test_an_ask_that_cannot_be_stored_is_refused_where_it_is_made(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(NotPlain, match=said):
        make()


def test_the_message_of_an_error_can_always_be_stored() -> None:
    cut = EnvironmentFailed("x" * 10**6).message
    assert len(cut) < 20_000
    assert EnvironmentFailed("a\ud800").message == "a?"
    assert EnvironmentFailed(KeyError("gone")).message == "'gone'"  # type: ignore[arg-type]
