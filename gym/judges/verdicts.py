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
_DECORATION = r"[ \t*_`\"'\])]*+"
_BETWEEN = r"[ \t*_`\"'\[(]*+"
# a number does not count if a separator, a range or a second number follows it
_NUMBER = re.compile(
    r"[\s*_`\"']*+(-?(?:\d++\.?+\d*+|\.\d++)(?:[eE][+-]?\d++)?+)(?![\w%/])"
    rf"(?!{_DECORATION}(?:[%/\\|±+?~]"
    rf"|[-\u2010-\u2015\u2212,;:.…'\u2019&\u00a0\u2009\u202f]*+{_DECORATION}[-\u2212]?\d"
    r"|(?:or|and|to|through|out of|of)\b[^\n\d]{0,20}+\d))",
    re.IGNORECASE,
)
_THOUGHTS_BEGIN = re.compile(r"<think(?:ing)?>|\[THINK\]", re.IGNORECASE)
_THOUGHTS_END = re.compile(r"</think(?:ing)?>|\[/THINK\]", re.IGNORECASE)
_OBJECT = re.compile(r'\{\s*["}]')


def _without_repeats(pairs: list[tuple[str, Any]]) -> JsonObject:
    """Return the object; a key repeated with different values is set to None."""
    found: JsonObject = {}
    for key, value in pairs:
        found[key] = value if key not in found or found[key] == value else None
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_without_repeats)


def fill(template: str, fields: Mapping[str, str]) -> str:
    """Fill the fields of a template; other braces, and braces in the values, stay unchanged."""
    return FIELD.sub(lambda found: fields.get(found[1], found[0]), template)


def read_score(text: str, form: LabelVerdict | NumberVerdict | JsonVerdict) -> float | None:
    """Return the score in a judge's answer, or `None`. Only text after its thoughts counts."""
    if len(text) > MOST_ANSWER_CHARS:
        return None
    said = text[max((found.end() for found in _THOUGHTS_END.finditer(text)), default=0) :]
    if _THOUGHTS_BEGIN.search(said):
        return None
    match form:
        case LabelVerdict() | NumberVerdict():
            return _marked(said, form)
        case JsonVerdict():
            for value in reversed(_json_objects(said)):
                if form.field not in value:
                    continue
                found = value[form.field]
                if isinstance(found, bool):
                    return float(found)
                if isinstance(found, int | float):
                    return _bounded(found, form.minimum, form.maximum)
                return None
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


def _marked(said: str, form: LabelVerdict | NumberVerdict) -> float | None:
    """The verdict behind the last marker; None where the same line says another one before it."""

    def read(text: str, place: int) -> float | None:
        return _label(text, place, form) if isinstance(form, LabelVerdict) else _number(text, place, form)

    marks = list(re.finditer(re.escape(form.marker), said, re.IGNORECASE))
    if not marks:
        return None
    score = read(said, marks[-1].end())
    if len(marks) > 1 and "\n" not in said[marks[-2].end() : marks[-1].start()]:
        before = read(said[: marks[-1].start()], marks[-2].end())
        return score if before in (score, None) else None
    return score


def _label(said: str, place: int, form: LabelVerdict) -> float | None:
    """The label at a place; None where another one is named in its clause, or where it is doubted."""
    labels = "|".join(re.escape(label) for label in sorted(form.labels, key=len, reverse=True))
    found = re.compile(rf"[\s*_`\"'\[(]*+({labels})(?!\w)", re.IGNORECASE).match(said, place)
    if found is None:
        return None
    scores = {label.casefold(): score for label, score in form.labels.items()}
    score = scores[found[1].casefold()]
    line = re.compile(r"[^\n]*").match(said, found.end())
    rest = line[0] if line else ""
    if re.match(rf"{_DECORATION}(?:[?]|[-/\\|+~&\u2010-\u2015](?=[^\s]|\s*(?:{labels})(?!\w)))", rest, re.IGNORECASE):
        return None
    joined = (
        rf"{_DECORATION}(?:[,;({{\[]\s*+)?(?:(?:or|and|and/or|vs\.?|to)\b[^\w]{{0,8}}+(?:\w+ )??)?"
        rf"(?:[/|,;]\s*)?{_BETWEEN}({labels})(?!\w)"
    )
    after = re.match(joined, rest, re.IGNORECASE)
    others = [after[1]] if after else []
    clause = re.split(r"[.;(]", rest, maxsplit=1)[0]
    others += re.findall(rf"(?<!\w)({labels})(?!\w)", clause)
    return score if all(scores[other.casefold()] == score for other in others) else None


def _number(said: str, place: int, form: NumberVerdict) -> float | None:
    number = _NUMBER.match(said, place)
    return _bounded(float(number[1]), form.minimum, form.maximum) if number else None


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
