"""Comparison of two query results: as multisets of rows, or in order.

Columns have no names here. Numbers are equal within a tolerance (1 and 1.0 are the same number), texts are compared
exactly, NULL equals NULL.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

Row = Sequence[object]


def same_result(found: Sequence[Row], expected: Sequence[Row], *, ordered: bool) -> bool:
    """Return whether all rows are the same."""
    if len(found) != len(expected):
        return False
    if ordered:
        return all(_same_row(one, other) for one, other in zip(found, expected, strict=True))
    found_counts, expected_counts = Counter(map(tuple, found)), Counter(map(tuple, expected))
    missing = list((expected_counts - found_counts).elements())
    for row in (found_counts - expected_counts).elements():
        match = next((place for place, other in enumerate(missing) if _same_row(row, other)), None)
        if match is None:
            return False
        del missing[match]
    return True


def _same_row(one: Row, other: Row) -> bool:
    return len(one) == len(other) and all(_same_cell(left, right) for left, right in zip(one, other, strict=True))


def _same_cell(one: object, other: object) -> bool:
    if isinstance(one, int | float) and isinstance(other, int | float):
        return one == other or math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-9)
    return one == other
