"""Rows that arrive one by one over `POST /run`, gathered into one batch for each job, and awaited one by one.

NeMo Gym's collector has no notion of jobs: it asks the head server for its configuration, then posts rows, and posts a
row again whenever its connection breaks. So each reading of the configuration begins a job for the caller's address.
Within a job, a row with the same indices and content is the same rollout, whichever api process is asked.

One reader for each batch and process follows the completion log and wakes waiting requests; it ends when none is left.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass

import orjson

from gym.batch import BatchSpec
from gym.errors import Conflict, NotFound
from gym.ids import RolloutRef, new_id, parse_rollout_id
from gym.jsontypes import JsonObject
from gym.state.ledger.batches import Batches
from gym.state.ledger.log_position import LogWentBack
from gym.state.ledger.results import ResultLog, View
from gym.state.ledger.submission import NewBatch, StagedRow, Staging, canonical_digest
from gym.state.redis.driver import RedisError
from gym.state.redis.store import Store, end_tasks

JOB_TTL_S = 7 * 24 * 3600
READ_AGAIN_S = 0.5
IDLE_S = 30.0
PAGE = 1000
_LOG = logging.getLogger(__name__)


@dataclass(slots=True)
class _Reader:
    """Reader of one batch for the requests in `waiting`, by member. Results after `began` is set are not missed."""

    waiting: dict[str, list[asyncio.Event]]
    began: asyncio.Event
    task: asyncio.Task[None] | None = None


class SingleRows:
    """Single rows of one api process; `close` ends its readers."""

    def __init__(self, store: Store, results: ResultLog, batches: Batches) -> None:
        self._store = store
        self._results = results
        self._batches = batches
        self._readers: dict[str, _Reader] = {}

    async def begin_job(self, address: str) -> str:
        """Start a new job for an address; its previous job accepts no more rows."""
        key = self._store.keys.row_job(address)
        job = new_id("job")
        pipeline = self._store.redis.pipeline(transaction=True)
        pipeline.get(key)
        pipeline.set(key, job, ex=JOB_TTL_S)
        before, _ = await pipeline.execute()
        if before is not None:
            with suppress(NotFound):  # it never sent a row
                await self._batches.seal(_batch_id(before.decode()))
        return job

    async def job_of(self, address: str) -> str:
        """Return the current job of an address; start one if it has none."""
        key = self._store.keys.row_job(address)
        job = await self._store.redis.get(key)
        if job is None:
            await self._store.redis.set(key, new_id("job"), nx=True, ex=JOB_TTL_S)
            job = await self._store.redis.get(key)
        return "job-none" if job is None else str(job.decode())

    async def submit(self, job: str, policy: str, row: StagedRow) -> RolloutRef:
        """Add a row with a task id to the job's batch. The same id is the same rollout.

        Raises Conflict if the batch accepts no more rows.
        """
        batch_id, task_id = _batch_id(job), row.header.task_id or ""
        tasks = self._store.keys.batch(batch_id).tasks
        known = await self._store.redis.hget(tasks, task_id)
        if known is None:
            try:
                await self._append(batch_id, row)
            except NotFound:
                await self._create(batch_id, policy)
                await self._append(batch_id, row)
            known = await self._store.redis.hget(tasks, task_id)
        if known is None:
            raise Conflict("row_lost", f"the row {task_id} of batch {batch_id} has expired; send it again")
        return RolloutRef(batch_id, int(known.partition(b" ")[0]), 0)

    async def _append(self, batch_id: str, row: StagedRow) -> None:
        staged = Staging(self._store, batch_id)
        await staged.add([row])  # an unpublished row is deleted later
        await staged.publish(create=None, seal=False)

    async def _create(self, batch_id: str, policy: str) -> None:
        spec = BatchSpec(batch_id=batch_id, run=batch_id, policy=policy, sealed=False).model_dump(mode="json")
        new = NewBatch(spec=spec, digest=canonical_digest(spec), run=batch_id, priority=5, weight=1.0, policy=policy)
        await Staging(self._store, batch_id).publish(create=new, seal=False)

    async def result(self, rollout: RolloutRef, *, wait_s: float) -> JsonObject | None:
        """Return the full result (`view=full`), or None if it is not available within `wait_s`."""
        reader = self._reader(rollout.batch_id)
        ended = asyncio.Event()
        waiting = reader.waiting[rollout.member]
        waiting.append(ended)
        try:
            async with asyncio.timeout(wait_s):
                await reader.began.wait()  # results from here on are seen
                shown = await self._results.get(rollout, View.FULL)
                while shown.get("outcome") is None:
                    await ended.wait()
                    ended.clear()
                    shown = await self._results.get(rollout, View.FULL)
                return shown
        except TimeoutError:
            return None
        finally:
            waiting.remove(ended)
            if not waiting:
                reader.waiting.pop(rollout.member, None)

    def _reader(self, batch_id: str) -> _Reader:
        reader = self._readers.get(batch_id)
        if reader is None:
            reader = self._readers[batch_id] = _Reader(defaultdict(list), asyncio.Event())
            reader.task = asyncio.create_task(self._follow(batch_id, reader), name=f"rows of {batch_id}")
        return reader

    async def _follow(self, batch_id: str, reader: _Reader) -> None:
        after: str | None = None
        try:
            while reader.waiting:
                try:
                    if after is None:
                        after = await self._end_of_log(batch_id)
                        reader.began.set()
                    await self._results.wait(batch_id, after=after, timeout_s=IDLE_S)
                    page = await self._results.page(batch_id, after=after, limit=PAGE, view=View.LIGHT)
                except RedisError as error:
                    _LOG.warning("batch %s cannot be read: %s", batch_id, error, extra={"action": "redis_unavailable"})
                    await asyncio.sleep(READ_AGAIN_S)
                    continue
                except LogWentBack as error:
                    after = error.resume_after
                    continue
                after = page.next_after
                for record in page.records:
                    rollout = parse_rollout_id(orjson.loads(record).get("rollout_id", ""))
                    for ended in reader.waiting.get(rollout.member if rollout is not None else "", ()):
                        ended.set()
        except NotFound:
            _LOG.info("batch %s no longer exists", batch_id, extra={"action": "batch_gone"})
        finally:
            self._readers.pop(batch_id, None)
            for events in reader.waiting.values():  # each checks again by itself, and none is left out
                for ended in events:
                    ended.set()

    async def _end_of_log(self, batch_id: str) -> str:
        newest = await self._store.redis.xrevrange(self._store.keys.batch(batch_id).log, count=1)
        return newest[0][0].decode() if newest else "0-0"

    async def close(self) -> None:
        """Stop the readers."""
        tasks = [reader.task for reader in self._readers.values() if reader.task is not None]
        await end_tasks(tasks)


def _batch_id(job: str) -> str:
    return f"nemo-gym-{job}"
