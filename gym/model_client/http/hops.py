"""The header by which a model call that comes back to a proxy it has passed is recognised.

Every proxy adds the name of its farm to the calls that it sends on. A policy served at the farm's own proxy, or at one
that leads back to it, so ends at the second visit; a chain of different farms goes through.
"""

from __future__ import annotations

HEADER = "x-farm-hops"
MOST = 4  # farms that a call may pass


def passed(header: str | None) -> list[str]:
    """Return the names in a header, the first farm first."""
    return [name.strip() for name in (header or "").split(",") if name.strip()]


def is_loop(header: str | None, own: frozenset[str]) -> bool:
    """Whether a call has passed one of these farms, or too many."""
    names = passed(header)
    return len(names) >= MOST or not own.isdisjoint(names)


def with_own(header: str | None, own: str) -> str:
    """Return the header of the call that is sent on."""
    return ", ".join([*passed(header), own])
