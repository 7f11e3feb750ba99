"""Moves rollouts from the backlog to Celery, and takes back what got lost.

Invariant: only a window of work is in Celery or running; the rest waits in Redis, where priority, fairness and
cancellation still reach it. Everything it decides is carried out by scripts that are safe to run twice, so a standby
copy may take over at any moment; the lock only keeps two from filling the window twice.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import socket
import time
from dataclasses import dataclass

import orjson
from redis.exceptions import RedisError

from gym.config import Settings
from gym.errors import SettingsError
from gym.state.batches import cancel
from gym.state.breakers import BreakerKey, policy_key
from gym.state.leases import Leases
from gym.state.rollouts import Rollouts
from gym.state.store import Store
from gym.state.submission import sweep_staged
from workers.alone_jobs import AloneJobs, jobs_of
from workers.parking import Parking
from workers.publisher import Job, Publisher
from workers.retention import Retention
from workers.schedule import Waiting, plan

LEAD_TTL_S = 3.0
HOUSEKEEPING_S = 1.0
NO_WORKERS_S = 0.1
ORPHANED_CANCEL_S = 10.0
MIN_TICK_S = 0.02
_LOG = logging.getLogger(__name__)


@dataclass(slots=True)
class Batch:
    """A batch as the dispatcher knows it: what never changes, and the counters of this tick."""

    batch_id: str
    run: str
    priority: int
    weight: float
    created_at: int
    max_attempts: int
    deadline_at: int | None
    policy: BreakerKey
    parked: int = 0  # of those queued, by their environments
    queued: int = 0
    dispatched: int = 0
    running: int = 0
    stopping: bytes = b"0"  # 1 cancelled, 2 past its deadline
    sweep_at: float = 0.0  # when to finish a cancellation that whoever asked for it has not finished
    ended: bool = False


class Dispatcher:
    """One process; `run` until `stop`."""

    def __init__(self, settings: Settings, store: Store, publisher: Publisher) -> None:
        self.name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._settings = settings
        self._store = store
        self._rollouts = Rollouts(store)
        self._leases = Leases(store)
        self._publisher = publisher
        self._retention = Retention(settings, store)
        self._parking = Parking(settings, store)
        self._alone = AloneJobs(store)
        self._batches: dict[str, Batch] = {}
        self._virtual_times: dict[str, float] | None = None
        self._slots = 0
        self._workers = 0
        self._stopping = asyncio.Event()
        self._housekeeping_at = 0.0
        self._lead_again_at = 0.0
        self._server_ahead_ms = 0  # Redis's clock minus ours

    def stop(self) -> None:
        """End after this tick."""
        self._stopping.set()

    async def run(self) -> None:
        """Lead when nobody else does, tick when woken or from time to time."""
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                if await self._lead():
                    await self._tick()
                    await self._sleep_until_woken()
                else:
                    self._virtual_times = None
                    await self._pause(LEAD_TTL_S / 3)
            except RedisError as error:
                _LOG.warning("no tick: %s", error, extra={"action": "tick_failed"})
                await self._pause(0.5)
            await self._pause(max(0.0, MIN_TICK_S - (time.monotonic() - began)))
        try:
            await self._leases.resign(self.name)
        except RedisError:
            _LOG.info("lock left to expire", extra={"action": "resign_failed"})

    async def _lead(self) -> bool:
        """Renewed once a second; between renewals the lock has time left."""
        now = time.monotonic()
        if now >= self._lead_again_at:
            leads = await self._leases.lead(self.name, LEAD_TTL_S)
            self._lead_again_at = now + LEAD_TTL_S / 3 if leads else 0.0
            return leads
        return True

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return

    async def _sleep_until_woken(self) -> None:
        if self._stopping.is_set():
            return
        await self._store.redis.blpop([self._store.keys.wake], timeout=self._settings.dispatcher.tick_s)

    async def _tick(self) -> None:
        await self._parking.refresh()
        await self._read_batches()
        if time.monotonic() >= self._housekeeping_at:
            await self._housekeeping()
            # a farm that has just come up is not kept waiting for its workers to be noticed
            self._housekeeping_at = time.monotonic() + (HOUSEKEEPING_S if self._slots else NO_WORKERS_S)
        await self._fill_window()

    async def _read_batches(self) -> None:
        """The active batches and their counters."""
        redis, keys = self._store.redis, self._store.keys
        names = [name.decode() for name in await redis.zrange(keys.active, 0, -1)]
        for unknown in [name for name in names if name not in self._batches]:
            batch = await self._read_batch(unknown)
            if batch is not None:
                self._batches[unknown] = batch
        self._batches = {name: self._batches[name] for name in names if name in self._batches}
        if not self._batches:
            return
        pipeline = redis.pipeline(transaction=False)
        fields = ["queued", "dispatched", "running", "cancel", "ended_at", *self._parking.fields]
        for name in self._batches:
            pipeline.hmget(keys.batch(name).meta, fields)
        for batch, values in zip(self._batches.values(), await pipeline.execute(), strict=True):
            queued, dispatched, running, flag, ended_at, *parked = values
            batch.queued, batch.dispatched, batch.running = int(queued or 0), int(dispatched or 0), int(running or 0)
            batch.parked = sum(int(number or 0) for number in parked)
            batch.stopping = flag or b"0"
            batch.ended = ended_at is not None

    async def _read_batch(self, batch_id: str) -> Batch | None:
        fields = ["spec", "run", "priority", "weight", "created_at"]
        values = await self._store.redis.hmget(self._store.keys.batch(batch_id).meta, fields)
        if values[0] is None:
            await self._store.redis.zrem(self._store.keys.active, batch_id)
            return None
        spec = orjson.loads(values[0])
        limits = spec["limits"]
        created_at = int(values[4])
        deadline_s = limits.get("deadline_s")
        return Batch(
            batch_id=batch_id,
            run=values[1].decode(),
            priority=int(values[2]),
            weight=float(values[3]),
            created_at=created_at,
            max_attempts=int(limits["max_attempts"]),
            deadline_at=None if deadline_s is None else created_at + int(deadline_s * 1000),
            policy=policy_key(spec.get("policy")),
        )

    async def _fill_window(self) -> None:
        batches = self._batches.values()
        await self._send(await self._parking.probes(list(batches)), self._server_ms())
        in_flight = sum(batch.dispatched + batch.running for batch in batches)
        room = int(self._slots * self._settings.dispatcher.window) - in_flight
        waiting = [
            Waiting(
                batch_id=batch.batch_id,
                run=batch.run,
                priority=batch.priority,
                weight=batch.weight,
                created_at=batch.created_at,
                backlog=batch.queued - batch.dispatched - batch.parked,
            )
            for batch in batches
            if batch.stopping == b"0" and not self._parking.holds(batch.policy)
        ]
        waiting = [batch for batch in waiting if batch.backlog > 0]
        if room <= 0 or not waiting:
            return
        if self._virtual_times is None:
            stored = await self._store.redis.hgetall(self._store.keys.share)
            self._virtual_times = {run.decode(): float(value) for run, value in stored.items()}
        plan_now = plan(
            waiting, room=room, slice_size=self._slice_size(room, waiting), virtual_times=self._virtual_times
        )
        self._virtual_times = plan_now.virtual_times
        await self._dispatch(plan_now.takes)
        pipeline = self._store.redis.pipeline(transaction=True)
        pipeline.delete(self._store.keys.share)
        pipeline.hset(self._store.keys.share, mapping=dict(self._virtual_times))
        await pipeline.execute()

    def _slice_size(self, room: int, waiting: list[Waiting]) -> int:
        """Small slices when there is little to share, so that it spreads over the workers."""
        most = self._settings.dispatcher.slice_size
        work = min(room, sum(batch.backlog for batch in waiting))
        return max(1, min(most, work // max(1, 4 * self._workers)))

    async def _dispatch(self, takes: list[tuple[str, int]]) -> None:
        """Take as planned and send one job for each slice of one environment."""
        sent_ms = self._server_ms()  # before taking: no rollout is older than the job that carries it
        jobs: list[Job] = []
        for batch_id, wanted in takes:
            taken = await self._rollouts.take(
                batch_id, wanted, parked=self._parking.environments, suspects=await self._alone.may_go(self._workers)
            )
            found = jobs_of(batch_id, taken)
            self._alone.sent(found)
            jobs += found
        await self._send(jobs, sent_ms)

    async def _send(self, jobs: list[Job], sent_ms: int) -> None:
        if jobs:
            await asyncio.to_thread(self._publisher.send, jobs, sent_ms)

    async def _housekeeping(self) -> None:
        workers = await self._leases.workers()
        dead = [worker.worker for worker in workers if worker.lease_ends_in_s <= 0]
        alive = [worker for worker in workers if worker.lease_ends_in_s > 0]
        self._slots = sum(worker.slots for worker in alive)
        self._workers = len(alive)
        now = await self._store.now_ms()
        self._server_ahead_ms = now - time.time_ns() // 1_000_000
        overdue_ms = await asyncio.to_thread(self._overdue_before, now)
        for batch in list(self._batches.values()):
            await self._look_after(batch, now, overdue_ms, dead)
        await sweep_staged(self._store, now)
        await self._retention.run_when_due()
        for worker in dead:
            _LOG.warning("worker %s is gone", worker, extra={"action": "worker_lost"})
            await self._leases.forget_worker(worker)

    def _server_ms(self) -> int:
        return time.time_ns() // 1_000_000 + self._server_ahead_ms

    def _overdue_before(self, now: int) -> int:
        """Jobs handed over before this moment and still unclaimed are lost: none that old waits in the broker."""
        limit = now - int(self._settings.dispatcher.resend_after_s * 1000)
        oldest = self._publisher.oldest_waiting_ms()
        return limit if oldest is None else min(limit, oldest)

    async def _look_after(self, batch: Batch, now: int, overdue_ms: int, dead: list[str]) -> None:
        overdue = batch.deadline_at is not None and now > batch.deadline_at
        if batch.ended:
            await self._retire(batch)
            return
        if batch.stopping == b"2" or (overdue and batch.stopping == b"0"):
            await cancel(self._store, batch.batch_id, "batch", "*", letter="e", reason="deadline")
        elif batch.stopping == b"1":
            batch.sweep_at = batch.sweep_at or time.monotonic() + ORPHANED_CANCEL_S
            if time.monotonic() >= batch.sweep_at:
                await cancel(self._store, batch.batch_id, "batch", "*")
        if dead or batch.dispatched:
            recovered = await self._rollouts.recover(
                batch.batch_id,
                overdue_ms=overdue_ms,
                max_attempts=batch.max_attempts,
                dead_workers=dead,
                suspect_after=self._settings.dispatcher.suspect_after,
            )
            if recovered.requeued or recovered.failed or recovered.resent:
                _LOG.warning(
                    "batch %s: %d of dead workers queued again, %d failed, %d jobs sent again",
                    batch.batch_id,
                    recovered.requeued,
                    recovered.failed,
                    recovered.resent,
                    extra={"action": "recovered"},
                )

    async def _retire(self, batch: Batch) -> None:
        """An ended batch is left alone and kept for as long as the settings say."""
        self._batches.pop(batch.batch_id, None)
        await self._retention.retire(batch.batch_id, batch.created_at)


def run(settings: Settings) -> None:
    """The process: until SIGTERM or SIGINT."""
    if settings.redis.url is None:
        raise SettingsError("the dispatcher needs redis.url (FARM_REDIS_URL)")
    asyncio.run(_main(settings, settings.redis.url))


async def _main(settings: Settings, redis_url: str) -> None:
    store = Store.connect(redis_url, prefix=settings.redis.prefix, timeout_s=settings.redis.timeout_s)
    publisher = Publisher(settings)
    dispatcher = Dispatcher(settings, store, publisher)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, dispatcher.stop)
    try:
        await dispatcher.run()
    finally:
        publisher.close()
        await store.close()
