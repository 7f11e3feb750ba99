"""Verdicts of all forms are found quickly in 200 KB of a degenerate answer."""

from __future__ import annotations

import time

import pytest

from gym.judges.settings import JsonVerdict, LabelVerdict, NumberVerdict
from gym.judges.verdicts import MOST_ANSWER_CHARS, fill, read_score

SIZE = 200_000
MOST_CPU_S = 3.0
FORMS = {
    "labels": LabelVerdict(),
    "short_labels": LabelVerdict(labels={"A": 1.0, "B": 0.0, "TIE": 0.5}),
    "number": NumberVerdict(minimum=0, maximum=10),
    "json": JsonVerdict(),
}
UNITS = (
    *("Verdict:", "Verdict: ", "verdict: EQUAL", "Verdict: EQUALLY", "Verdict: *", "Score:", "Score: 7", "Score: 7/"),
    *(
        "Score: 1.1.1.1",
        "Score: -",
        "<think>",
        "</think>",
        "<think></think>",
        "{",
        "}",
        "{}",
        '{"',
        '{"score":',
        '{"score": 1',
    ),
    *(
        '{"score": [',
        '{ "',
        '{"a": "',
        '{"a": {"b": ',
        '{"a": 1}, ',
        '{"score": 0.5} ',
        "{\n",
        '{"\n',
        "\n",
        " ",
        "*",
        "`",
        "[",
        "(",
    ),
    *(
        "1",
        "1.",
        ".",
        "1e",
        "e",
        "-",
        '"',
        "\\",
        "\\u",
        '{"a": "\\',
        "EQUAL",
        "A",
        "\u017f",
        "İ",
        "\ud83c",
        '{"a":"b",',
        '{"a":[{',
    ),
)
BEGINS = ("", "Verdict: Score: ", '{"a": "')


@pytest.mark.parametrize("form", sorted(FORMS))
@pytest.mark.parametrize("begin", BEGINS)
def test_a_verdict_is_read_in_linear_time(form: str, begin: str) -> None:
    for unit in UNITS:
        text = begin + unit * (SIZE // len(unit))
        began = time.thread_time()
        read_score(text, FORMS[form])
        assert time.thread_time() - began < MOST_CPU_S, f"{form}: {text[:80]!r}"


def test_an_answer_that_no_judge_would_give_holds_no_verdict() -> None:
    assert read_score("Verdict: EQUAL" + " " * MOST_ANSWER_CHARS, FORMS["labels"]) is None


@pytest.mark.parametrize("text", ['{"score": 1' + "0" * 400 + "}", '{"score": 1e999}', '{"score": ' + "9" * 5000 + "}"])
def test_a_number_that_is_no_float_is_no_verdict(text: str) -> None:
    assert read_score(text, JsonVerdict()) is None


@pytest.mark.parametrize("unit", ["{", "{a", "{answer}", "{" * 10 + "}"])
def test_a_template_is_filled_in_linear_time(unit: str) -> None:
    began = time.thread_time()
    fill(unit * (SIZE // len(unit)), {"answer": "x"})
    assert time.thread_time() - began < MOST_CPU_S
