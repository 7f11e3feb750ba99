"""What a verifier asks a judge, and what comes back.

`verify` of an environment that uses judges returns an `Ask` where it cannot decide by itself. The ask is stored beside
the trajectory, the rollout frees its worker, and whoever has the verdicts calls the environment's `judged` with them.
So a judge may be slow or away, and the same ask can be put again later, to another judge too (`rejudge`).

A verdict is never invented: what no judge has said has no score. Errors are raised, see `gym.errors.JudgeFailed`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from gym.jsontypes import JsonObject
from gym.plain import exact_json
from gym.plain.values import NotPlain, plain, text

TEXT_CHARS = 500  # of what a judge said, in a record


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One thing to be judged: an answer, with what it answers and what it is compared with where there is that.

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
        """What a prompt template may name."""
        return {**self.extra, "question": self.question, "answer": self.answer, "reference": self.reference}


@dataclass(frozen=True, slots=True)
class Ask:
    """What `verify` returns where judges decide. `facts` is JSON that `judged` gets back; it is stored with the ask.

    Numbers and arrays of other libraries become JSON's. Raises NotPlain for what JSON cannot hold.
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
        """As it is stored."""
        questions = [
            {"judge": q.judge, "answer": q.answer, "question": q.question, "reference": q.reference, "extra": q.extra}
            for q in self.questions
        ]
        return exact_json.dumps({"v": 1, "questions": questions, "facts": self.facts})

    @staticmethod
    def unpack(packed: bytes) -> Ask:
        """What `pack` stored."""
        stored: Any = exact_json.loads(packed)
        return Ask(tuple(Question(**question) for question in stored["questions"]), stored["facts"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a judge said of one question. `votes` are what the score was made of, `text` is its own words, cut short."""

    judge: str
    version: str
    score: float
    votes: tuple[float, ...] = ()
    text: str = ""
    cached: bool = False

    def as_json(self) -> JsonObject:
        """As a result shows it."""
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
    """A question on its way to a judge. `rivals` are the same question's other answers, for a judge that compares.

    `deadline` is of `loop.time()`; `fresh` passes by what is in the cache.
    """

    question: Question
    deadline: float
    request_id: str
    rivals: Sequence[Question] = ()
    fresh: bool = False


class Judge(Protocol):
    """One configured judge, at work in a judge worker."""

    @property
    def name(self) -> str: ...

    async def verdict(self, case: Case) -> Verdict:
        """Raises JudgeUnreachable, JudgeRefused or VerdictUnreadable."""
