"""The scorer interface of a judge server, and the models that it knows by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from gym.errors import SettingsError
from workers.judge_server.item import Item


class Scorer(Protocol):
    """A scoring model. `version` names its weights: equal versions give equal scores."""

    model: str
    version: str

    def scores(self, items: Sequence[Item]) -> list[float | None]:
        """Return a number for each item, `None` if it cannot be scored; called from one thread at a time."""


def _embedding(model: str) -> Scorer:
    from workers.judge_server.embedding import SentenceEmbeddings

    return SentenceEmbeddings.load(model)


def _reward_model(model: str) -> Scorer:
    from workers.judge_server.classifier import CleanLanguage

    return CleanLanguage.load(model)


_KINDS: dict[str, tuple[Callable[[str], Scorer], str, str]] = {
    # kind: its loader, the default model, the extra to install
    "embedding": (_embedding, "all-minilm-l6-v2", "judge"),
    "reward_model": (_reward_model, "clean-language", "judge-classifier"),
}
KINDS = tuple(_KINDS)


def load_scorer(kind: str, model: str | None) -> Scorer:
    """Load the model that serves a kind. Raises SettingsError that names anything missing."""
    if kind not in _KINDS:
        raise SettingsError(
            f"a judge server has no kind {kind!r}, it has {', '.join(KINDS)}; a language model is served by "
            "`vllm serve` or another server of Chat Completions"
        )
    load, default, extra = _KINDS[kind]
    try:
        return load(model or default)
    except ImportError as error:
        raise SettingsError(
            f"a judge of kind {kind} needs the package {error.name}: `pip install 'rollout-farm[{extra}]'`"
        ) from error
