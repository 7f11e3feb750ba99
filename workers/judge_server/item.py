"""The text that a judge server scores."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Item:
    """A text to be scored, with its question and the reference that it is compared with."""

    answer: str
    question: str = ""
    reference: str = ""
