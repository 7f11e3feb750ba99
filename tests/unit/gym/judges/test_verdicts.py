"""Detection of the verdict in a judge's answer."""

from __future__ import annotations

import pytest

from gym.errors import VerdictUnreadable
from gym.judges.settings import JsonVerdict, LabelVerdict, NumberVerdict
from gym.judges.verdicts import fill, read_score, tally

LABELS = LabelVerdict()
PLACES = LabelVerdict(labels={"A": 1.0, "B": 0.0, "TIE": 0.5})
NUMBER = NumberVerdict(minimum=0, maximum=10)


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Verdict: EQUAL", 1.0),
        ("They differ in the year.\n**Verdict:** DIFFERENT", 0.0),
        ("verdict: `equal`.", 1.0),
        ("Verdict: EQUAL\nOn second thought.\nVerdict: DIFFERENT", 0.0),
        ("<think>Verdict: EQUAL?</think>Verdict: DIFFERENT", 0.0),
        ("<think>Verdict: EQUAL</think>I cannot say.", None),
        ("They are EQUAL.", None),
        ("Verdict: EQUALLY good", None),
        ("Verdict: EQUAL, or so I thought.\nVerdict: unclear", None),
        ("", None),
    ],
)
def test_the_word_behind_the_last_marker_is_the_verdict(text: str, score: float | None) -> None:
    assert read_score(text, LABELS) == score


@pytest.mark.parametrize(
    ("text", "score"), [("Verdict: [[A]]", 1.0), ("Verdict: Answer A", None), ("Verdict: tie", 0.5)]
)
def test_short_labels_are_whole_words(text: str, score: float | None) -> None:
    assert read_score(text, PLACES) == score


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Score: 7", 7.0),
        ("Score: **7.5**", 7.5),
        ("score: 3\nScore: 4.", 4.0),
        ("Score: 11", None),
        ("Score: -1", None),
        ("Score: 7/10", None),
        ("Score: 70%", None),
        ("Score: seven", None),
        ("7", None),
    ],
)
def test_a_number_counts_within_its_bounds_only(text: str, score: float | None) -> None:
    assert read_score(text, NUMBER) == score


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ('{"score": 0.5}', 0.5),
        ('Here: {"why": "{braces}", "score": true} done', 1.0),
        ('{"score": 0.1} then {"score": 0.9}', 0.9),
        ('{"score": 2}', None),
        ('{"score": NaN}', None),
        ('{"score": "high"}', None),
        ('{"score": 0.5', None),
    ],
)
def test_the_last_json_object_with_the_field_counts(text: str, score: float | None) -> None:
    assert read_score(text, JsonVerdict()) == score


@pytest.mark.parametrize(
    "text",
    [
        "<think>The format is Verdict: EQUAL",
        "<think>a</think>Verdict: EQUAL <think>but",
        "<THINK>Verdict: EQUAL",
        "Verdict: EQUAL/DIFFERENT",
        "Verdict: EQUAL / DIFFERENT",
        "Verdict: EQUAL or DIFFERENT",
        "Verdict: EQUAL, DIFFERENT",
        "Verdict: **EQUAL** | **DIFFERENT**",
        "Verdict: EQUAL (or DIFFERENT)",
        "verdict: equal and different",
        "Verdict: EQUAL-ish",
        "Verdict: EQUAL?",
        "Verdict: EQUAL Verdict: DIFFERENT",
    ],
)
def test_cut_thoughts_and_ambiguous_labels_are_no_verdict(text: str) -> None:
    assert read_score(text, LABELS) is None


@pytest.mark.parametrize("text", ["Verdict: A or B", "Verdict: A/B", "Verdict: [[A]] or [[B]]", "Verdict: A+B"])
def test_two_places_are_no_verdict(text: str) -> None:
    assert read_score(text, PLACES) is None


@pytest.mark.parametrize("text", ["Verdict: A, since a B is worse. B fails.", "Verdict: A - it is a proof"])
def test_a_reason_may_follow_a_label(text: str) -> None:
    assert read_score(text, PLACES) == (None if "a B" in text else 1.0)


@pytest.mark.parametrize(
    "said",
    [
        *("1,000", "1 000", "1'000", "3-4", "3 - 4", "3\u20134", "3 to 4", "3 or 4", "3/5 or 4/5", "**7** / 10"),
        *("7 out of 10", "3..4", "3, 4", "7+", "7±1", "7?", "7 Score: 8"),
    ],
)
def test_a_range_or_a_number_with_separators_is_no_verdict(said: str) -> None:
    assert read_score(f"Score: {said}", NUMBER) is None


@pytest.mark.parametrize("said", ["7 (3 errors)", "7, since it is short", "7\n1. a reason", "7. It is short"])
def test_a_reason_may_follow_a_number(said: str) -> None:
    assert read_score(f"Score: {said}", NUMBER) == 7.0


@pytest.mark.parametrize("text", ['{"score": 0, "score": 1}', '{"score": 0.1} {"score": "high"}'])
def test_an_unreadable_last_object_is_not_replaced_by_a_draft(text: str) -> None:
    assert read_score(text, JsonVerdict()) is None


def test_a_majority_of_votes_is_the_score() -> None:
    assert tally([1.0, 0.0, 1.0], "majority", "j") == (1.0, [1.0, 0.0, 1.0])


def test_the_mean_is_of_the_votes_that_were_read() -> None:
    assert tally([1.0, None, 0.5], "mean", "j") == (0.75, [1.0, 0.5])


@pytest.mark.parametrize(("votes", "how"), [([1.0, 0.0], "majority"), ([1.0, None], "mean"), ([None], "majority")])
def test_no_score_is_made_of_a_tie_or_of_too_few_votes(votes: list[float | None], how: str) -> None:
    with pytest.raises(VerdictUnreadable):
        tally(votes, how, "j")  # type: ignore[arg-type]


def test_braces_in_what_is_judged_are_left_as_they_are() -> None:
    assert (
        fill("{answer} of {reference} {json}", {"answer": "{reference}", "reference": "r"}) == "{reference} of r {json}"
    )
