"""Figures of a measurement: medians over repeats. A slow machine is never a failure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gym.jsontypes import JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured quantity. `target` is the value to reach, and `better` the direction.

    `value` is the median of `repeats`; `detail` holds further numbers, such as the split by process. If the quantity
    cannot be measured here, `repeats` is empty and `missing` gives the reason.
    """

    case: str
    name: str
    unit: str
    repeats: tuple[float, ...]
    target: float | None = None
    better: Literal["lower", "higher"] = "lower"
    detail: JsonObject | None = None
    missing: str | None = None

    @property
    def value(self) -> float:
        """Return the median; NaN if there are no repeats."""
        return statistics.median(self.repeats) if self.repeats else math.nan

    @property
    def reached(self) -> bool | None:
        """Return whether the median reaches the target; None without a target."""
        if self.target is None or not self.repeats:
            return None
        return self.value <= self.target if self.better == "lower" else self.value >= self.target

    def as_dict(self) -> JsonObject:
        """Return the figure for `--json`."""
        return {
            "case": self.case,
            "name": self.name,
            "unit": self.unit,
            "median": self.value if self.repeats else None,
            "min": min(self.repeats, default=None),
            "max": max(self.repeats, default=None),
            "repeats": list(self.repeats),
            "target": self.target,
            "better": self.better,
            "reached": self.reached,
            "detail": self.detail,
            "missing": self.missing,
        }


def percentile(values: Sequence[float], share: float) -> float:
    """Return a percentile by the nearest rank; 0 for no values."""
    if not values:
        return 0.0
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]
