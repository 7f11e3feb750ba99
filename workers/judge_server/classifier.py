"""A classifier as reward model: the probability that an answer is free of profanity.

The model is the one that the package `alt-profanity-check` carries: a linear support-vector machine over word counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

import profanity_check

from gym.errors import SettingsError
from workers.judge_server.item import Item

MODEL = "clean-language"


class CleanLanguage:
    """A scorer of the answer alone."""

    model = MODEL

    def __init__(self) -> None:
        self.version = f"alt-profanity-check-{version('alt-profanity-check')}"

    @staticmethod
    def load(model: str) -> CleanLanguage:
        """Load the model. Raises SettingsError for any other model."""
        if model != MODEL:
            raise SettingsError(f"there is no classifier {model!r}, only {MODEL}")
        return CleanLanguage()

    def scores(self, items: Sequence[Item]) -> list[float | None]:
        """Return 1.0 for clean language, 0.0 for foul."""
        if not items:
            return []
        return [1.0 - float(foul) for foul in profanity_check.predict_prob([item.answer for item in items])]
