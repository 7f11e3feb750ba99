"""Kinds `llm` and `remote`: a language model that is prompted, and whose votes are counted.

They differ in where the model is served: `llm` by replicas that the judge pool publishes, `remote` at a fixed URL.
"""

from __future__ import annotations

from gym.jsontypes import JsonObject
from gym.judges.base import TEXT_CHARS, Case, Verdict
from gym.judges.cache import VerdictCache, digest_of
from gym.judges.calls import JudgeCalls, together
from gym.judges.settings import LlmJudge, PairwiseJudge, RemoteJudge
from gym.judges.verdicts import fill, read_score, tally


class ChatJudge:
    """Judge that samples `votes` answers concurrently, with different seeds."""

    def __init__(self, settings: LlmJudge | RemoteJudge, calls: JudgeCalls, cache: VerdictCache) -> None:
        self.name = calls.name
        self._settings = settings
        self._calls = calls
        self._cache = cache

    async def verdict(self, case: Case) -> Verdict:
        """See Judge."""
        fields = case.question.fields()
        version = self._calls.version
        return await self._cache.get_or_ask(
            version, digest_of(fields), lambda: self._ask(fields, version, case), fresh=case.fresh
        )

    async def _ask(self, fields: dict[str, str], version: str, case: Case) -> Verdict:
        settings = self._settings
        texts = await together(
            ask_once(self._calls, settings, fields, vote=vote, deadline=case.deadline, request_id=case.request_id)
            for vote in range(settings.votes)
        )
        votes = [read_score(text, settings.verdict) for text in texts]
        score, read = tally(votes, settings.vote, self.name)
        return Verdict(
            judge=self.name, version=version, score=score, votes=tuple(read), text=texts[0].strip()[:TEXT_CHARS]
        )


async def ask_once(
    calls: JudgeCalls,
    settings: LlmJudge | RemoteJudge | PairwiseJudge,
    fields: dict[str, str],
    *,
    vote: int,
    deadline: float,
    request_id: str,
) -> str:
    """Return one answer of the model to the filled template."""
    messages: list[JsonObject] = [{"role": "user", "content": fill(settings.template, fields)}]
    if settings.system:
        messages.insert(0, {"role": "system", "content": settings.system})
    sampling = settings.sampling if settings.votes == 1 else {"seed": vote, **settings.sampling}
    return await calls.chat(messages, sampling, deadline=deadline, request_id=f"{request_id}-v{vote}")
