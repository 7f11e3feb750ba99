"""Work on a batch that is too much for one script: done step by step in the background, with pauses.

Invariant: the remaining work is recorded in Redis, and each step is one script that may be repeated. So a dispatcher
that takes over continues where the last one stopped. Steps take at most half of Redis's time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable

from gym.state.ledger.cancellation import cancel, step_stops
from gym.state.ledger.publication import publish_step
from gym.state.redis.driver import RedisError, ResponseError
from gym.state.redis.store import Store
from gym.state.repair.audit import Audits
from workers.dispatch.batch import ActiveBatch

LEAST_PAUSE_S = 0.002
NOTHING_NOW_S = 0.25
"""Between looks at a batch of which nothing can be ended right now, but something is left."""

AFTER_ERROR_S = 2.0
_LOG = logging.getLogger(__name__)


class LongWork:
    """The long work of one dispatcher; `run` is its task, `see` gives it the batches."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._audits = Audits(store)
        self._batches: dict[str, ActiveBatch] = {}
        self._due_at: dict[str, float] = {}
        self._some = asyncio.Event()

    def see(self, batches: Iterable[ActiveBatch]) -> None:
        """Work only on those of the batches that have such work; the leader alone passes any."""
        self._batches = {batch.batch_id: batch for batch in batches if _has_work(batch)}
        self._due_at = {name: at for name, at in self._due_at.items() if name in self._batches}
        if self._batches:
            self._some.set()
        else:
            self._some.clear()

    async def run(self) -> None:
        """Take a step of each batch in turn, until cancelled."""
        while True:
            await self._some.wait()
            now = time.monotonic()
            due = [batch for name, batch in self._batches.items() if self._due_at.get(name, 0.0) <= now]
            for batch in due:
                began = time.monotonic()
                self._due_at[batch.batch_id] = began + await self._step_or_complain(batch)
                await asyncio.sleep(max(LEAST_PAUSE_S, time.monotonic() - began))
            if not due:
                await asyncio.sleep(LEAST_PAUSE_S * 10)

    async def _step_or_complain(self, batch: ActiveBatch) -> float:
        """Take a step and return the seconds until the batch's next one; a step that fails stops no other batch."""
        try:
            return await self._step(batch)
        except ResponseError as error:
            _LOG.error("batch %s: a step failed: %s", batch.batch_id, error, extra={"action": "step_failed"})
        except RedisError as error:
            _LOG.warning("batch %s: no step: %s", batch.batch_id, error, extra={"action": "step_waits"})
        return AFTER_ERROR_S

    async def _step(self, batch: ActiveBatch) -> float:
        if batch.publishing is not None:
            if not await publish_step(self._store, batch.batch_id, batch.publishing):
                batch.publishing = None
            return 0.0
        if batch.stopping is not None:
            done = await cancel(self._store, batch.batch_id, "batch", "*", cause=batch.stopping, go_on=True)
            return 0.0 if done.more_now else NOTHING_NOW_S
        if batch.stops:
            batch.stops = await step_stops(self._store, batch.batch_id)
            return 0.0
        if batch.search is not None:
            step = await self._audits.adopt_step(batch.batch_id, batch.search)
            batch.search = step.goes_on_at if step else None
            if step and step.members:
                _LOG.error(
                    "batch %s: %d rollouts that nothing held were queued again",
                    batch.batch_id,
                    len(step.members),
                    extra={"action": "adopted"},
                )
            return 0.0
        return NOTHING_NOW_S


def _has_work(batch: ActiveBatch) -> bool:
    begun = batch.publishing is not None or batch.search is not None
    return not batch.ended and (begun or batch.stopping is not None or batch.stops > 0)
