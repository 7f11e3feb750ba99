"""Header for loop detection: lists the farms whose proxies a model call has passed.

Every proxy adds the name of its farm to the calls that it forwards. So a call to a policy that leads back to the farm's
own proxy ends at the second visit; a chain of different farms works.
"""

from __future__ import annotations

HEADER = "x-farm-hops"
MOST = 4  # farms that a call may pass


def passed(header: str | None) -> list[str]:
    """Return the names in a header, the first farm first."""
    return [name.strip() for name in (header or "").split(",") if name.strip()]


def is_loop(header: str | None, own: frozenset[str]) -> bool:
    """Return whether a call has passed one of these farms, or too many farms."""
    names = passed(header)
    return len(names) >= MOST or not own.isdisjoint(names)


def with_own(header: str | None, own: str) -> str:
    """Return the header of the forwarded call."""
    return ", ".join([*passed(header), own])
