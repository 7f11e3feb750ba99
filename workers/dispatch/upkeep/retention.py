"""Retention of results: by age, by acknowledgement, and by size.

Each run does a bounded part; the next one finds the rest. Trajectories go before records: an ended batch whose
trajectories were dropped still shows how each rollout ended, and that they were dropped.
"""

from __future__ import annotations

import logging
import time

from gym.config import Settings
from gym.results.blobs import BlobStore
from gym.state.alarms import Alarms
from gym.state.ledger.ended_batches import DropReason, EndedBatch, EndedBatches
from gym.state.ledger.result_records import unreadable_alarm
from gym.state.ledger.submission import sweep_staged
from gym.state.redis.store import Store
from workers.dispatch.quarantine import Quarantine

INTERVAL_S = 5.0
BATCHES_AT_ONCE = 20
FILES_AT_ONCE = 2000
_LOG = logging.getLogger(__name__)


class Retention:
    """The retention of one dispatcher."""

    def __init__(self, settings: Settings, store: Store, quarantine: Quarantine | None = None) -> None:
        self._quarantine = quarantine or Quarantine(store)
        self._settings = settings.results
        self._store = store
        self._kept = EndedBatches(store)
        self._blobs = BlobStore(settings.data_dir / "blobs", inline_bytes=settings.results.inline_bytes)
        self._due_at = 0.0

    async def retire(self, batch_id: str, created_at: int) -> None:
        """Note that a batch has ended: from now on its age counts."""
        await self._kept.retire(batch_id, created_at=created_at, keep_s=self._settings.keep_s)

    async def run_when_due(self) -> None:
        """Call `run` every few seconds. Files that cannot be deleted are tried again, and stop nothing else."""
        if time.monotonic() < self._due_at:
            return
        self._due_at = time.monotonic() + INTERVAL_S
        try:
            await self.run()
            if await self._blobs.empty_trash(FILES_AT_ONCE) >= FILES_AT_ONCE:
                self._due_at = 0.0  # the rest at the next look
        except OSError as error:
            _LOG.warning("files of ended batches stay: %s", error, extra={"action": "retention_failed"})

    async def run(self) -> None:
        """Remove batches that are too old, then drop trajectories that have been acknowledged or exceed the size."""
        now = await self._store.now_ms()
        await sweep_staged(self._store, now)
        await self._remove(now - int(self._settings.keep_s * 1000))
        if self._settings.keep_acknowledged_s is None and self._settings.max_bytes is None:
            return
        batches = await self._kept.with_trajectories()
        for batch, reason in self._to_drop(now, batches, await self._kept.live_bytes())[:BATCHES_AT_ONCE]:
            async with self._quarantine.guard(batch.batch_id, "its trajectories cannot be dropped"):
                if await self._kept.drop(batch.batch_id, reason):
                    await self._blobs.discard(batch.batch_id)
                    _LOG.info(
                        "batch %s: trajectories dropped (%s)", batch.batch_id, reason, extra={"action": "dropped"}
                    )
                await self._kept.dropped(batch.batch_id)

    async def _remove(self, before_ms: int) -> None:
        for batch_id in await self._kept.over(before_ms, BATCHES_AT_ONCE):
            async with self._quarantine.guard(batch_id, "it is too old and cannot be removed"):
                if await self._kept.remove(batch_id, before_ms):
                    await self._blobs.discard(batch_id)
                    await self._kept.removed(batch_id)
                    await Alarms(self._store).clear(unreadable_alarm(batch_id, [], "").name)

    def _to_drop(self, now: int, batches: list[EndedBatch], live_bytes: int) -> list[tuple[EndedBatch, DropReason]]:
        """Return batches whose trajectories go, and why: acknowledged ones, then the oldest until the rest fits."""
        keep_s, most = self._settings.keep_acknowledged_s, self._settings.max_bytes
        found = []
        left = live_bytes
        for batch in batches:
            since = batch.acknowledged_at
            if keep_s is not None and since is not None and since <= now - keep_s * 1000:
                found.append((batch, DropReason.ACKNOWLEDGED))
            else:
                left += batch.size_bytes
        if most is not None:
            gone = {batch.batch_id for batch, _ in found}
            for batch in batches:
                if left <= most:
                    break
                if batch.batch_id not in gone:
                    found.append((batch, DropReason.SIZE))
                    left -= batch.size_bytes
        return found
