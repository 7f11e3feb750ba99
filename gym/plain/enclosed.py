"""Texts between marks, found in linear time.

`opening(.*?)closing` as one regular expression looks to the end of the text from each mark that is never closed, so a
model that repeats a tag would stop the process.
"""

from __future__ import annotations

import re


def enclosed(text: str, opening: re.Pattern[str], closing: re.Pattern[str]) -> list[str]:
    """Return the texts between each opening mark and the next closing one, in order; marks do not nest."""
    found: list[str] = []
    place = 0
    while (begin := opening.search(text, place)) and (end := closing.search(text, begin.end())):
        found.append(text[begin.end() : end.start()])
        place = end.end()
    return found
