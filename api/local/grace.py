"""How long a server process of a local farm lets requests under way finish."""

from __future__ import annotations

GRACE_S = 6  # longer than the grace of `api.shutdown`, which ends requests with an answer
