"""Questions to a judge and its verdicts.

`verify` of an environment that uses judges returns an `Ask` if it cannot decide by itself. The ask is stored beside
the trajectory and the rollout frees its worker. A judge worker later calls the environment's `judged` with the
verdicts. So a judge may be slow or down, and the same ask can be repeated later, also with another judge
(`rejudge`).

Invariant: a verdict is never invented; without a judge's answer there is no score. Errors are raised, see
`gym.errors.JudgeFailed`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from gym.jsontypes import JsonObject
from gym.plain import exact_json
from gym.plain.values import NotPlain, plain, text

TEXT_CHARS = 500  # of a judge's answer, kept in a record


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Answer to be judged, with the question and the reference answer if there are any.

    `extra` holds more texts for a judge's prompt template.
    """

    judge: str
    answer: str
    question: str = ""
    reference: str = ""
    extra: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("judge", "answer", "question", "reference"):
            object.__setattr__(self, name, text(getattr(self, name), f"a question's {name}"))
        if self.extra:
            extra = {
                text(name, "a name in a question's extra"): text(value, f"a question's extra.{name}")
                for name, value in self.extra.items()
            }
            object.__setattr__(self, "extra", extra)

    def fields(self) -> dict[str, str]:
        """Return the fields that a prompt template may name."""
        return {**self.extra, "question": self.question, "answer": self.answer, "reference": self.reference}


@dataclass(frozen=True, slots=True)
class Ask:
    """Result of `verify` that leaves the decision to judges. `facts` is stored as JSON and passed to `judged`.

    Numbers and arrays of other libraries become JSON's. Raises NotPlain for values that JSON cannot hold.
    """

    questions: tuple[Question, ...]
    facts: JsonObject = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.questions:
            raise ValueError("an Ask has at least one question")
        if not isinstance(self.facts, dict):
            raise NotPlain(f"facts is of type {type(self.facts).__name__}; expected a dict")
        object.__setattr__(self, "questions", tuple(self.questions))
        object.__setattr__(self, "facts", plain(self.facts, "facts"))

    def pack(self) -> bytes:
        """Return the stored form. Raises TypeError or ValueError for values that `unpack` could not read."""
        questions = [
            {"judge": q.judge, "answer": q.answer, "question": q.question, "reference": q.reference, "extra": q.extra}
            for q in self.questions
        ]
        packed = exact_json.dumps({"v": 1, "questions": questions, "facts": self.facts})
        if b"\\ud" in packed:
            exact_json.loads(packed)  # half a surrogate pair can be written, but not read
        return packed

    @staticmethod
    def unpack(packed: bytes) -> Ask:
        """Read the form that `pack` returns."""
        stored: Any = exact_json.loads(packed)
        return Ask(tuple(Question(**question) for question in stored["questions"]), stored["facts"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A judge's score for one question. `votes` are the scores it was computed from; `text` is the truncated answer."""

    judge: str
    version: str
    score: float
    votes: tuple[float, ...] = ()
    text: str = ""
    cached: bool = False

    def as_json(self) -> JsonObject:
        """Return the verdict as a result shows it."""
        return {
            "judge": self.judge,
            "version": self.version,
            "score": self.score,
            "votes": list(self.votes),
            "text": self.text[:TEXT_CHARS],
            "cached": self.cached,
        }


@dataclass(frozen=True, slots=True)
class Case:
    """Question on its way to a judge. `rivals` are the other answers to it, for a judge that compares.

    `deadline` is of `loop.time()`; `fresh` ignores cached verdicts.
    """

    question: Question
    deadline: float
    request_id: str
    rivals: Sequence[Question] = ()
    fresh: bool = False


class Judge(Protocol):
    """One configured judge in a judge worker."""

    @property
    def name(self) -> str: ...

    async def verdict(self, case: Case) -> Verdict:
        """Judge a case. Raises JudgeUnreachable, JudgeRefused or VerdictUnreadable."""
