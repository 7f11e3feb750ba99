"""Retry policy: whether and when a failed rollout runs again, by the class of its error (`gym.limits`). Pure."""

from __future__ import annotations

import random

from gym.errors import DATA_ERRORS, RolloutError
from gym.limits import Limits
from gym.state.ledger.result_records import read_tries

LONGEST_S = 30.0


def retry_in_s(error: RolloutError, tries: bytes, limits: Limits) -> float | None:
    """Return seconds until the next attempt, None if there is none; `tries` are earlier failed attempts, JSON lines.

    The error of an earlier attempt uses up the budget of its own class only.
    """
    infrastructure = data = 0
    for attempt in read_tries(tries):
        if attempt.get("retryable", True):
            infrastructure += 1
        else:
            data += 1
    if error.retryable:
        return back_off_s(infrastructure + 1) if infrastructure + 1 < limits.max_attempts else None
    if error.kind in DATA_ERRORS and data < limits.retry_data_errors:
        return 0.0
    return None


def back_off_s(failures: int) -> float:
    """Return a rollout's wait after so many failures: 1, 2, 4 … up to 30 s, with jitter of a half."""
    return min(LONGEST_S, 2.0 ** (failures - 1)) * random.uniform(0.5, 1.0)
