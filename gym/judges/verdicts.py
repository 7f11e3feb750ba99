"""Conversion of a judge's answers into a score: prompt, parser, votes. Pure.

Invariants: an unreadable answer is `None`, never a default; a score is computed only from votes that were read. Parsing
takes time linear in the answer, for any input.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from gym.errors import VerdictUnreadable
from gym.jsontypes import JsonObject
from gym.judges.settings import FIELD, JsonVerdict, LabelVerdict, NumberVerdict

MOST_ANSWER_CHARS = 2**20
_TRIES = 20  # times that each character of an answer may be read in search of a JSON object
_NUMBER = re.compile(r"[\s*_`\"']*+(-?(?:\d++\.?+\d*+|\.\d++)(?:[eE][+-]?\d++)?+)(?![\w%/])")
_OBJECT = re.compile(r'\{\s*["}]')
_DECODER = json.JSONDecoder()


def fill(template: str, fields: Mapping[str, str]) -> str:
    """Fill the fields of a template; other braces, and braces in the values, stay unchanged."""
    return FIELD.sub(lambda found: fields.get(found[1], found[0]), template)


def read_score(text: str, form: LabelVerdict | NumberVerdict | JsonVerdict) -> float | None:
    """Return the score in a judge's answer, or `None`. Only text after `</think>` counts."""
    if len(text) > MOST_ANSWER_CHARS:
        return None
    said = text.rpartition("</think>")[2]
    match form:
        case LabelVerdict():
            return _label(said, form)
        case NumberVerdict():
            places = [found.end() for found in re.finditer(re.escape(form.marker), said, re.IGNORECASE)]
            number = _NUMBER.match(said, places[-1]) if places else None
            return _bounded(float(number[1]), form.minimum, form.maximum) if number else None
        case JsonVerdict():
            for value in reversed(_json_objects(said)):
                found = value.get(form.field)
                if isinstance(found, bool):
                    return float(found)
                if isinstance(found, int | float):
                    return _bounded(found, form.minimum, form.maximum)
    return None


def tally(votes: Sequence[float | None], how: Literal["majority", "mean"], judge: str) -> tuple[float, list[float]]:
    """Return the score of the votes, and the readable votes.

    Raises VerdictUnreadable if no more than half are readable, or if no score has the most votes.
    """
    read = [vote for vote in votes if vote is not None]
    if 2 * len(read) <= len(votes):
        raise VerdictUnreadable(f"judge {judge!r}: {len(votes) - len(read)} of {len(votes)} answers held no verdict")
    if how == "mean":
        return math.fsum(read) / len(read), read
    ranked = Counter(read).most_common(2)
    if len(ranked) > 1 and ranked[0][1] == ranked[1][1]:
        raise VerdictUnreadable(f"judge {judge!r}: no majority among the votes {read}; give it an odd number of votes")
    return ranked[0][0], read


def _label(said: str, form: LabelVerdict) -> float | None:
    labels = "|".join(re.escape(label) for label in sorted(form.labels, key=len, reverse=True))
    pattern = re.compile(rf"{re.escape(form.marker)}[\s*_`\"'\[(]*({labels})(?!\w)", re.IGNORECASE)
    markers = [found.start() for found in re.finditer(re.escape(form.marker), said, re.IGNORECASE)]
    found = pattern.match(said, markers[-1]) if markers else None
    if found is None:
        return None
    scores = {label.casefold(): score for label, score in form.labels.items()}
    return scores[found[1].casefold()]


def _bounded(value: float, minimum: float, maximum: float) -> float | None:
    return float(value) if minimum <= value <= maximum else None


def _json_objects(text: str) -> list[JsonObject]:
    """Return the outermost JSON objects in order; none if too many of them are never closed."""
    found: list[JsonObject] = []
    place, left = 0, _TRIES * (len(text) + 1)
    while begin := _OBJECT.search(text, place):
        try:
            value: Any
            value, place = _DECODER.raw_decode(text, begin.start())
            found.append(value)
        except (ValueError, RecursionError) as error:
            place = begin.start() + 1
            read_to = error.pos if isinstance(error, json.JSONDecodeError) else len(text)
            left -= read_to - begin.start() + read_to // 64  # an error counts the lines before it
            if left < 0:
                return []
    return found
