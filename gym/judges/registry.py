"""Registry of judge classes by kind of settings."""

from __future__ import annotations

from gym.judges.base import Judge
from gym.judges.cache import VerdictCache
from gym.judges.calls import JudgeCalls
from gym.judges.chat import ChatJudge
from gym.judges.pairwise import Pairwise
from gym.judges.scores import ScoreJudge
from gym.judges.settings import EmbeddingJudge, JudgeSettings, LlmJudge, PairwiseJudge, RemoteJudge, RewardModelJudge


def make_judge(settings: JudgeSettings, calls: JudgeCalls, cache: VerdictCache) -> Judge:
    """Create the judge that these settings describe."""
    match settings:
        case LlmJudge() | RemoteJudge():
            return ChatJudge(settings, calls, cache)
        case PairwiseJudge():
            return Pairwise(settings, calls, cache)
        case EmbeddingJudge() | RewardModelJudge():
            return ScoreJudge(settings, calls, cache)
