"""Kind `pairwise`: the answers of a group are compared with each other; an answer's score is its share of wins.

Each pair is asked in both orders. A judge with position bias says A to both orders, or B to both: that is a tie. A
pair's verdict is cached under its two answers, so the members of a group ask each pair only once.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from gym.errors import VerdictUnreadable
from gym.judges.base import Case, Question, Verdict
from gym.judges.cache import VerdictCache, digest_of
from gym.judges.calls import JudgeCalls, together
from gym.judges.chat import ask_once
from gym.judges.settings import PairwiseJudge
from gym.judges.verdicts import read_score, tally

Compare = Callable[[str, str], Coroutine[Any, Any, float | None]]
"""Score of the first answer against the second, from 0 to 1; `None` if the verdict is unreadable."""


class Pairwise:
    """Judge that compares the case's answer with its rivals."""

    def __init__(self, settings: PairwiseJudge, calls: JudgeCalls, cache: VerdictCache) -> None:
        self.name = calls.name
        self._settings = settings
        self._calls = calls
        self._cache = cache

    async def verdict(self, case: Case) -> Verdict:
        """See Judge. Raises VerdictUnreadable also if there are no rivals."""
        if not case.rivals:
            raise VerdictUnreadable(f"judge {self.name!r} compares the answers of a group, and there is no other one")
        question, version = case.question, self._calls.version
        answers = [question.answer, *(rival.answer for rival in case.rivals)]

        async def compare(first: str, second: str) -> float | None:
            try:
                return (await self._pair(question, first, second, version, case)).score
            except VerdictUnreadable:
                return None

        play = all_pairs if self._settings.rounds == "all_pairs" else tournament
        wins = await play(question.answer, answers, compare)
        if not wins:
            raise VerdictUnreadable(f"judge {self.name!r}: none of its comparisons of this answer could be read")
        return Verdict(judge=self.name, version=version, score=sum(wins) / len(wins), votes=tuple(wins))

    async def _pair(self, question: Question, first: str, second: str, version: str, case: Case) -> Verdict:
        """Return the score of the first answer; the cached verdict scores the lexicographically smaller one."""
        if first == second:
            return Verdict(judge=self.name, version=version, score=0.5)
        swapped = first > second
        lesser, greater = sorted((first, second))
        fields = question.fields() | {"first": lesser, "second": greater, "answer": ""}
        kept = await self._cache.get_or_ask(
            version, digest_of(fields), lambda: self._both_orders(fields, version, case), fresh=case.fresh
        )
        if not swapped:
            return kept
        return Verdict(judge=self.name, version=version, score=1.0 - kept.score)

    async def _both_orders(self, fields: dict[str, str], version: str, case: Case) -> Verdict:
        turned = fields | {"first": fields["second"], "second": fields["first"]}
        ahead, behind = await together([self._ask(fields, case), self._ask(turned, case)])
        return Verdict(judge=self.name, version=version, score=merged(ahead, behind), votes=(ahead, 1.0 - behind))

    async def _ask(self, fields: dict[str, str], case: Case) -> float:
        settings = self._settings
        texts = await together(
            ask_once(self._calls, settings, fields, vote=vote, deadline=case.deadline, request_id=case.request_id)
            for vote in range(settings.votes)
        )
        score, _ = tally([read_score(text, settings.verdict) for text in texts], settings.vote, self.name)
        return score


def merged(ahead: float, behind: float) -> float:
    """Merge both orders into the first answer's score; `behind` is the other answer's score when it came first.

    Preferring the same position in both orders is no preference for an answer: a tie.
    """
    other = 1.0 - behind
    if (ahead - 0.5) * (other - 0.5) < 0:
        return 0.5
    return (ahead + other) / 2


async def all_pairs(answer: str, answers: Sequence[str], compare: Compare) -> list[float]:
    """Compare the answer, which is `answers[0]`, with each other one; leave out unreadable comparisons."""
    results = await together(compare(answer, rival) for rival in answers[1:])
    return [result for result in results if result is not None]


async def tournament(answer: str, answers: Sequence[str], compare: Compare) -> list[float]:
    """Play a knockout over all answers, seeded by their texts so that all members of a group play the same one.

    Return one result per round: the answer's comparisons until it is out, then losses. So the score is the share of
    rounds that it survived. After a tie or an unreadable pair the lexicographically smaller text advances.
    """
    field = sorted(set(answers))
    results: list[float] = []
    while len(field) > 1:
        pairs = list(zip(field[::2], field[1::2], strict=False))
        scores = await together(compare(first, second) for first, second in pairs)
        following = [field[-1]] if len(field) % 2 else []
        for (first, second), score in zip(pairs, scores, strict=True):
            if answer in (first, second) and score is not None:
                results.append(score if answer == first else 1.0 - score)
            following.append(second if score is not None and score < 0.5 else first)
        if answer in field and answer not in following:
            rounds_left = (len(following) - 1).bit_length()
            return results + [0.0] * rounds_left
        field = sorted(following)
    return results
