"""Capacity of an api process, shared among clients of the relay so that no client can take all of it. No I/O.

Invariant: a client gets its `reserved` slots whatever the others hold, and never more than `each`. Above its reserve it
gets one only while fewer than `total` are taken.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque


class Shares:
    """Slots by client name."""

    def __init__(self, *, total: int, each: int, reserved: int) -> None:
        self._total = total
        self._each = each
        self._reserved = reserved
        self._held: Counter[str] = Counter()
        self._taken = 0
        self._waiting: deque[tuple[str, asyncio.Future[None]]] = deque()

    def take(self, name: str) -> bool:
        """Take a slot if one is available to this client."""
        held = self._held[name]
        if held < self._each and (held < self._reserved or self._taken < self._total):
            self._held[name] += 1
            self._taken += 1
            return True
        if not held:
            del self._held[name]
        return False

    async def wait(self, name: str) -> None:
        """Take a slot, waiting for one; clients are served in order of arrival, within their limits."""
        if self.take(name):
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((name, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give_back(name)
            raise

    def give_back(self, name: str) -> None:
        """Return a slot; it goes to the first waiting client that may have it."""
        self._taken -= 1
        self._held[name] -= 1
        if not self._held[name]:
            del self._held[name]
        for _ in range(len(self._waiting)):
            waiting, turn = self._waiting.popleft()
            if turn.done():
                continue
            if self.take(waiting):
                turn.set_result(None)
            else:
                self._waiting.append((waiting, turn))
