"""Writing of trajectories for workers: a failed write is tried again for a while before its attempt is given up.

A rollout that waits here keeps its slot. So a disk that is full for a moment costs only time. One that stays full uses
attempts up slowly, since no new rollouts begin meanwhile.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import random
import time
from collections.abc import Callable

from gym.errors import StorageFailed, text_of
from gym.ids import RolloutRef
from gym.results.blobs import BlobStore

FULL_S = 20.0  # a full disk has room again when something is deleted
BROKEN_S = 5.0
HANGS_S = 30.0  # limit for one write, as on a network disk whose server is away
LONGEST_PAUSE_S = 1.0
COMPLAIN_S = 10.0
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_LOG = logging.getLogger(__name__)


class PatientStore:
    """A blob store that many rollouts write to; while `draining` nothing is waited for."""

    def __init__(self, blobs: BlobStore, *, draining: Callable[[], bool]) -> None:
        self._blobs = blobs
        self._draining = draining
        self._complain_again_at = 0.0

    async def write(self, rollout: RolloutRef, attempt: int, packed: bytes, *, part: str = "") -> bytes:
        """Write as `BlobStore.write` does. Raises StorageFailed if that cannot be done in time."""
        began = time.monotonic()
        pause_s = 0.1
        while True:
            try:
                async with asyncio.timeout(HANGS_S):
                    return await self._blobs.write(rollout, attempt, packed, part=part)
            except OSError as error:  # TimeoutError is one
                self._complain(error)
                patience_s = FULL_S if error.errno in _FULL else BROKEN_S
                if self._draining() or time.monotonic() - began >= patience_s:
                    raise StorageFailed(f"the trajectory could not be stored: {text_of(error)}") from error
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _complain(self, error: OSError) -> None:
        now = time.monotonic()
        if now >= self._complain_again_at:
            self._complain_again_at = now + COMPLAIN_S
            _LOG.error("trajectories cannot be stored: %s", text_of(error), extra={"action": "storage_failed"})
