"""Registry of the rollouts that a worker process holds: being claimed, waiting to run alone, or running.

Invariant: a rollout is in the registry from before Redis may assign it to this worker until its end is recorded. So
a comparison with Redis never mistakes a claim under way for a loss.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

from gym.state.ledger.rollouts import ClaimedRollout


class HasClaim(Protocol):
    """A rollout under way, as the registry sees it."""

    @property
    def claim(self) -> ClaimedRollout: ...


R = TypeVar("R", bound=HasClaim)


class HeldRollouts(Generic[R]):
    """One per worker process, on its event loop."""

    def __init__(self) -> None:
        self.draining = False  # nothing new is started, and nothing is waited for any more
        self.ended = 0
        self.running: dict[asyncio.Task[None], R] = {}
        self.loose: set[asyncio.Task[None]] = set()  # cancelled, recorded without them, and still running
        self._claiming: Counter[tuple[str, str]] = Counter()
        self._waiting: list[Sequence[ClaimedRollout]] = []

    def is_draining(self) -> bool:
        """Return `draining`, for parts that ask for it."""
        return self.draining

    def runs(self) -> list[R]:
        """Return the rollouts that run now."""
        return list(self.running.values())

    @contextmanager
    def claiming(self, batch_id: str, members: Sequence[str]) -> Iterator[set[str]]:
        """Hold members of a batch while they are claimed; yields the members that were here already."""
        here = {run.claim.member for run in self.running.values() if run.claim.batch_id == batch_id}
        here |= {member for batch, member in self._claiming if batch == batch_id}
        names = [(batch_id, member) for member in members]
        self._claiming.update(names)
        try:
            yield here
        finally:
            self._claiming -= Counter(names)

    @contextmanager
    def waiting(self, claims: Sequence[ClaimedRollout]) -> Iterator[None]:
        """Hold claims that have not started; the sequence may shrink meanwhile."""
        self._waiting.append(claims)
        try:
            yield
        finally:
            self._waiting = [others for others in self._waiting if others is not claims]

    def names(self) -> set[tuple[str, str, str]]:
        """Return (batch, member, token) of all that is held; the token is empty while a rollout is being claimed."""
        claims = [*(run.claim for run in self.running.values()), *(claim for each in self._waiting for claim in each)]
        held = {(claim.batch_id, claim.member, claim.token) for claim in claims}
        return held | {(batch_id, member, "") for batch_id, member in self._claiming}
