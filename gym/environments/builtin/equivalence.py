"""Questions with an expected answer; a judge decides whether an answer is equivalent.

No judge is asked about equal texts, about two numbers, or about a missing answer.
"""

from __future__ import annotations

import random
import re
import unicodedata
from fractions import Fraction

from gym.environments.base import Environment, Row
from gym.jsontypes import JsonObject
from gym.judges.base import Ask, Question
from gym.plain.enclosed import enclosed
from gym.reward import Reward
from gym.trajectory import Trajectory, message_text

JUDGE = "equality"
TOLERANCE = Fraction(1, 10**9)  # of the larger number
FACTS = (
    ("What is the capital of Norway?", "Oslo"),
    ("How many legs does a spider have?", "8"),
    ("What is 12 * 12?", "144"),
    ("Which gas do plants take up from the air?", "carbon dioxide"),
    ("Who wrote the play Hamlet?", "William Shakespeare"),
    ("What is 7 + 5?", "12"),
)

MOST_COMPARED = 8_000  # characters: normalising runs of combining marks takes quadratic time
_OPENING, _CLOSING = (re.compile(mark, re.IGNORECASE) for mark in ("<answer>", "</answer>"))
_NUMBER = re.compile(r"[+-]?(?:\d+(?:,\d{3})+|\d+)?(?:\.\d+)?(?:[eE][+-]?\d{1,3})?")
_FRACTION = re.compile(r"([+-]?\d{1,30})\s*/\s*(\d{1,30})")
_EDGES = " \t\n\r.,;:!?\"'`*$()[]"


class EquivalenceRow(Row):
    """The expected answer; the question defaults to the last user message."""

    expected_answer: str | int | float
    question: str | None = None


class Equivalence(Environment[EquivalenceRow]):
    """Answer a question; a judge decides whether the answer says what is expected.

    The answer is the text in the last <answer> tags, else the whole last message. Reward 1.0 for the expected text or
    number, 0.0 for another number or a missing answer; else the judge `equality` decides.
    """

    name = "equivalence"
    row_model = EquivalenceRow
    agent = "single_turn"
    judges = (JUDGE,)

    def verify(self, trajectory: Trajectory) -> Reward | Ask:
        """Score without a judge if possible, else ask one."""
        answer = answer_of(trajectory.final_text)
        expected = str(self.row.expected_answer)
        same = same_plainly(answer, expected)
        if same is not None:
            return Reward(float(same), {"plain": 1.0})
        question = self.row.question or _last_question(self.row.model_dump().get("responses_create_params"))
        return Ask((Question(judge=JUDGE, question=question, answer=answer, reference=expected),))

    @classmethod
    def example_row(cls) -> JsonObject:
        """Return a question whose answers can be phrased in many ways."""
        return cls._row("Which gas do plants take up from the air?", "carbon dioxide")

    @classmethod
    def demo_rows(cls, count: int, seed: int) -> list[JsonObject]:
        """Return small facts and sums."""
        rng = random.Random(seed)
        return [cls._row(*rng.choice(FACTS)) for _ in range(count)]

    @classmethod
    def _row(cls, question: str, expected: str) -> JsonObject:
        return {
            "responses_create_params": {"input": [{"role": "user", "content": question}]},
            "environment": cls.name,
            "question": question,
            "expected_answer": expected,
        }


def answer_of(text: str) -> str:
    """Return the text in the last <answer> tags, else the whole text."""
    tagged = enclosed(text, _OPENING, _CLOSING)
    return (tagged[-1] if tagged else text).strip()


def same_plainly(answer: str, expected: str) -> bool | None:
    """Return whether both are the same text or number, `None` if only a judge can decide."""
    if not answer:
        return False
    if max(len(answer), len(expected)) > MOST_COMPARED:
        return True if answer == expected else None
    if _plain(answer) == _plain(expected):
        return True
    said, right = _number(answer), _number(expected)
    if said is None or right is None:
        return None
    return abs(said - right) <= TOLERANCE * max(abs(said), abs(right))


def _plain(text: str) -> str:
    """Normalise case, marks at the edges, blanks, and the encoding of characters."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().strip(_EDGES).split())


def _number(text: str) -> Fraction | None:
    """Return the exact number that a text is; commas may separate thousands."""
    plain = unicodedata.normalize("NFKC", text).strip(_EDGES.replace(".", "")).replace("\u2212", "-")
    if found := _FRACTION.fullmatch(plain):
        return Fraction(int(found[1]), int(found[2])) if int(found[2]) else None
    plain = plain.rstrip(".")
    if not _NUMBER.fullmatch(plain) or not any(character.isdigit() for character in plain):
        return None
    try:
        return Fraction(plain.replace(",", ""))
    except ValueError:
        return None


def _last_question(params: object) -> str:
    items = params.get("input") if isinstance(params, dict) else None
    if isinstance(items, str):
        return items
    users = [item for item in items or () if isinstance(item, dict) and item.get("role") == "user"]
    if not users:
        return ""
    content = users[-1].get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return message_text(users[-1])
