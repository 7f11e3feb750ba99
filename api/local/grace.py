"""Grace period for requests under way in a server process of a local farm."""

from __future__ import annotations

GRACE_S = 6  # longer than the grace of `api.shutdown`, which ends requests with an answer
