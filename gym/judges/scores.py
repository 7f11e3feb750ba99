"""Kinds `embedding` and `reward_model`: a judge server that gives numbers for batches of texts.

Its protocol is one call, `POST /v1/scores` with `{"items": [{"question", "answer", "reference"}]}`, answered with
`{"model", "version", "scores": [number or null]}`; `null` is an item that it cannot score. `farm judge-server` speaks
it, and takes more batches than it works on at a time: beyond its capacity it answers 429 with `Retry-After`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gym.errors import JudgeFailed, JudgeRefused, VerdictUnreadable
from gym.jsontypes import JsonObject
from gym.judges.base import Case, Verdict
from gym.judges.batching import MicroBatcher
from gym.judges.cache import VerdictCache, digest_of
from gym.judges.calls import JudgeCalls
from gym.judges.settings import EmbeddingJudge, RewardModelJudge
from gym.plain.values import NotPlain, number

PATH = "scores"
SHOWN_CHARS = 200


class ScoreJudge:
    """Judge that sends questions in batches. Each gets its own score; a refused question fails alone."""

    def __init__(self, settings: EmbeddingJudge | RewardModelJudge, calls: JudgeCalls, cache: VerdictCache) -> None:
        self.name = calls.name
        self._calls = calls
        self._cache = cache
        self._needs_reference = settings.kind == "embedding"
        self.batcher: MicroBatcher[Case, Verdict] = MicroBatcher(
            self._score,
            max_items=settings.batch_size,
            max_wait_s=settings.batch_wait_s,
            most_running=settings.concurrency,
        )

    async def verdict(self, case: Case) -> Verdict:
        """See Judge."""
        if self._needs_reference and not case.question.reference:
            raise JudgeRefused(f"judge {self.name!r} compares an answer with a reference, and the question has none")
        digest = digest_of(_item(case))
        return await self._cache.get_or_ask(
            self._calls.version, digest, lambda: self.batcher.submit(case), fresh=case.fresh
        )

    async def _score(self, cases: list[Case]) -> Sequence[Verdict | Exception]:
        try:
            return await self._ask(cases)
        except JudgeRefused:
            if len(cases) == 1:
                raise
        alone: list[Verdict | Exception] = []
        for case in cases:
            try:
                alone += await self._ask([case])
            except JudgeFailed as error:
                alone.append(error)
        return alone

    async def _ask(self, cases: list[Case]) -> Sequence[Verdict | Exception]:
        version = self._calls.version
        answer = await self._calls.post(
            PATH,
            {"items": [_item(case) for case in cases]},
            deadline=max(case.deadline for case in cases),
            request_id=cases[0].request_id,
        )
        scores: Any = answer.get("scores")
        if not isinstance(scores, list) or len(scores) != len(cases):
            raise VerdictUnreadable(
                f"judge {self.name!r}: {len(cases)} scores were expected, not {str(scores)[:SHOWN_CHARS]}"
            )
        server = str(answer.get("version") or "")
        if server and "@" not in version:
            version = f"{version}@{server}"
        return [self._verdict(score, version) for score in scores]

    def _verdict(self, score: Any, version: str) -> Verdict | Exception:
        try:
            value = number(None if isinstance(score, bool) else score, "the score")
        except NotPlain:
            return VerdictUnreadable(f"judge {self.name!r} gave {repr(score)[:SHOWN_CHARS]} for a score")
        return Verdict(judge=self.name, version=version, score=value, votes=(value,))


def _item(case: Case) -> JsonObject:
    question = case.question
    return {"question": question.question, "answer": question.answer, "reference": question.reference}
