"""What needs no judge, and what a judge is asked."""

from __future__ import annotations

import pytest

from gym.environments.builtin.equivalence import Equivalence, EquivalenceRow, answer_of, same_plainly
from gym.judges.base import Ask, Question, Verdict
from gym.reward import Reward
from gym.trajectory import Trajectory


@pytest.mark.parametrize(
    ("answer", "expected", "same"),
    [
        ("Oslo.", "oslo", True),
        ("  carbon   dioxide", "Carbon dioxide", True),
        ("1,000", "1000.0", True),
        ("1/2", "0.5", True),
        ("0.333333333333", "1/3", True),
        ("0.3333", "1/3", False),
        ("7", "8", False),
        ("-3", "\u22123", True),
        (".5", "0.5", True),
        ("1e400", "1e401", False),
        ("", "x", False),
        ("CO2", "carbon dioxide", None),
        ("12 legs", "12", None),
        ("1,00", "100", None),
        ("1/0", "5", None),
    ],
)
def test_plain_comparison_decides_equal_texts_and_numbers_only(answer: str, expected: str, same: bool | None) -> None:
    assert same_plainly(answer, expected) is same


def test_the_answer_is_what_stands_in_the_last_tags() -> None:
    assert answer_of("<answer>3</answer> no, <answer> 4 </answer>.") == "4"
    assert answer_of(" just this ") == "just this"


def verify(said: str, **row: object) -> Reward | Ask:
    params = {"input": [{"role": "system", "content": "s"}, {"role": "user", "content": "Which gas?"}]}
    data = {"responses_create_params": params, "expected_answer": "carbon dioxide", **row}
    trajectory = Trajectory(params=params)
    trajectory.items = [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": said}]}]
    return Equivalence(EquivalenceRow.model_validate(data), seed=0).verify(trajectory)


def test_no_judge_is_asked_where_plain_comparison_decides() -> None:
    assert verify("Carbon dioxide!") == Reward(1.0, {"plain": 1.0})


def test_else_the_judge_gets_question_answer_and_reference() -> None:
    question = Question(judge="equality", question="Which gas?", answer="CO2", reference="carbon dioxide")
    assert verify("<answer>CO2</answer>") == Ask((question,))


def test_what_was_asked_is_stored_and_read_back() -> None:
    ask = Ask((Question(judge="equality", answer="é", extra={"hint": "x"}),), {"floor": 0.5})
    assert Ask.unpack(ask.pack()) == ask


def test_the_verdicts_score_is_the_reward() -> None:
    asked = verify("CO2")
    assert isinstance(asked, Ask)
    verdict = Verdict(judge="equality", version="v", score=1.0)
    assert Equivalence.judged(asked, [verdict]) == Reward(1.0, {"equality": 1.0})
