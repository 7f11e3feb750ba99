"""The dispatcher: moves rollouts from the backlog to Celery. `upkeep.housekeeping` takes lost ones back.

Invariant: only a window of work is in Celery or running; the rest waits in Redis, where priority, fairness and
cancellation still reach it. Everything it decides is carried out by scripts that are safe to run twice, so a standby
copy may take over at any moment; the lock only keeps two from filling the window twice.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import secrets
import signal
import socket
import time

from gym.config import Settings
from gym.errors import SettingsError
from gym.processes.ending import end_within
from gym.processes.liveness import serve_liveness
from gym.state.batch_spec import SPEC_FIELD
from gym.state.dispatcher_health import DispatcherHealth
from gym.state.leases import Leases
from gym.state.ledger.rollouts import Rollouts, TakenRollout
from gym.state.redis.driver import RedisError
from gym.state.redis.eviction import watch_for_eviction
from gym.state.redis.store import Store, end_tasks
from gym.state.redis.unreadable import DECODE_ERRORS, names, read_or_none, reason
from workers.dispatch.batch import COUNTERS, ActiveBatch, read_batch
from workers.dispatch.breakers import DispatchBreakers
from workers.dispatch.judging import JudgeDispatch
from workers.dispatch.publisher import Job, Publisher
from workers.dispatch.quarantine import Quarantine
from workers.dispatch.schedule import WaitingBatch, plan, shares, slice_size, tick_gap_s
from workers.dispatch.suspects import SuspectJobs, jobs_of
from workers.dispatch.upkeep.housekeeping import Housekeeping
from workers.dispatch.upkeep.long_work import LongWork

LEAD_TTL_S = 3.0
IDLE_TICK_S = 1.0  # without an active batch; a new batch wakes it
COMPLAIN_S = 10.0
STOP_S = 10.0  # from SIGTERM to the end, even when something hangs
MOST_AT_ONCE = 256  # rollouts sent in one tick, so that a new run is considered soon
_LOG = logging.getLogger(__name__)


class Dispatcher:
    """The dispatcher of one process; `run` works until `stop`."""

    def __init__(self, settings: Settings, store: Store, publisher: Publisher) -> None:
        self.name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._settings = settings
        self._store = store
        self._rollouts = Rollouts(store)
        self._leases = Leases(store)
        self._publisher = publisher
        self._quarantine = Quarantine(store)
        self._breakers = DispatchBreakers(settings, store, self._quarantine)
        self._judges = JudgeDispatch(settings, store, self._breakers, self._quarantine)
        self._housekeeping = Housekeeping(settings, store, publisher, self._judges, self._quarantine)
        self._suspects = SuspectJobs(store)
        self._health = DispatcherHealth(store, self.name)
        self._long_work = LongWork(store)
        self._batches: dict[str, ActiveBatch] = {}
        self._virtual_times: dict[str, float] | None = None
        self._stopping = asyncio.Event()
        self._lead_again_at = 0.0
        self._complain_again_at = 0.0

    def stop(self) -> None:
        """End after this tick."""
        self._stopping.set()

    async def run(self) -> None:
        """Lead when no other dispatcher does; tick when woken and at intervals."""
        stepping = asyncio.create_task(self._long_work.run(), name="long work")
        try:
            await self._run()
        finally:
            await end_tasks([stepping])

    async def _run(self) -> None:
        while not self._stopping.is_set():
            began = time.monotonic()
            more = False
            try:
                if await self._lead():
                    more = await self._tick()
                    await self._health.ticked()
                    if not more:
                        await self._sleep_until_woken()
                else:
                    self._virtual_times = None
                    self._housekeeping.take_over()
                    self._long_work.see(())
                    await self._pause(LEAD_TTL_S / 3)
            except Exception as error:  # noqa: BLE001  only a signal ends it, not a stored value
                self._complain(error)
                await self._health.failed(error)
                await self._pause(0.5)
            if not more:
                at_work = sum(batch.dispatched + batch.running + batch.judging for batch in self._batches.values())
                await self._pause(max(0.0, began + tick_gap_s(at_work) - time.monotonic()))
        self._judges.close()
        try:
            await self._leases.resign(self.name)
        except RedisError:
            _LOG.info("lock left to expire", extra={"action": "resign_failed"})

    def _complain(self, error: Exception) -> None:
        """Log a failed tick at intervals, since each tick fails while Redis is full or unreachable."""
        if time.monotonic() >= self._complain_again_at:
            unexpected = None if isinstance(error, RedisError) else error
            _LOG.warning("no tick: %s", reason(error), exc_info=unexpected, extra={"action": "tick_failed"})
            self._complain_again_at = time.monotonic() + COMPLAIN_S

    async def _lead(self) -> bool:
        """Take or renew the lock, once a second; between renewals the lock has time left."""
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
        tick_s = self._settings.dispatcher.tick_s
        wait_s = tick_s if self._batches else max(tick_s, IDLE_TICK_S)
        await self._store.redis.blpop([self._store.keys.wake], timeout=wait_s)

    async def _tick(self) -> bool:
        """Run one tick; return whether there is more to send at once."""
        await self._breakers.refresh()
        await self._read_batches()
        self._long_work.see(self._batches.values())
        for batch in self._batches.values():
            batch.held = self._breakers.holds(batch.policy)
        await self._housekeeping.run_when_due(self._batches)
        more = await self._fill_window()
        await self._judges.fill(self._batches.values())
        return more

    async def _read_batches(self) -> None:
        """Read the active batches and their counters; those in quarantine are left out."""
        redis, keys = self._store.redis, self._store.keys
        active = names(await redis.zrange(keys.active, 0, -1))
        await self._quarantine.release(active)
        found: dict[str, ActiveBatch] = {}
        for name in active:
            if self._quarantine.holds(name):
                continue
            batch = self._batches.get(name)
            if batch is None:
                async with self._quarantine.guard(name, "its options cannot be read"):
                    batch = await self._read_batch(name)
            if batch is not None:
                found[name] = batch
        self._batches = found
        pipeline = redis.pipeline(transaction=False)
        fields = [*COUNTERS, *self._breakers.fields]
        for name in found:
            pipeline.hmget(keys.batch(name).meta, fields)
        answers = await pipeline.execute(raise_on_error=False) if found else []
        for batch, values in zip(list(found.values()), answers, strict=True):
            del found[batch.batch_id]
            async with self._quarantine.guard(batch.batch_id, "its counters cannot be read"):
                if isinstance(values, Exception):
                    raise values
                batch.count(values)
                found[batch.batch_id] = batch

    async def _read_batch(self, batch_id: str) -> ActiveBatch | None:
        fields = [SPEC_FIELD, "run", "priority", "weight", "created_at", "ended_at"]
        values = await self._store.redis.hmget(self._store.keys.batch(batch_id).meta, fields)
        if values[0] is None and values[5] is None:
            await self._store.redis.zrem(self._store.keys.active, batch_id)
            return None
        try:
            return read_batch(batch_id, values)
        except DECODE_ERRORS:
            if values[5] is None:
                raise
            await self._housekeeping.retire(batch_id, read_or_none("time", batch_id, int, values[4]) or 0)
            return None

    async def _fill_window(self) -> bool:
        """Fill the window; return whether it has room for more rollouts than were sent now."""
        batches = self._batches.values()
        sent_ms = self._housekeeping.server_ms()
        await self._send(await self._breakers.probes(list(batches)), sent_ms)
        active = [
            WaitingBatch(
                batch_id=batch.batch_id,
                run=batch.run,
                priority=batch.priority,
                weight=batch.weight,
                created_at=batch.created_at,
                backlog=_backlog(batch),
                in_flight=batch.dispatched + batch.running,
            )
            for batch in batches
        ]
        waiting = [batch for batch in active if batch.backlog or batch.in_flight]
        window = int(self._housekeeping.slots * self._settings.dispatcher.window)
        free = window - sum(batch.in_flight for batch in active)
        if not any(batch.backlog for batch in waiting):
            return False
        left = shares(waiting, slots=self._housekeeping.slots)
        owed = sum(number for number in left.values() if number > 0)
        # a window full of other runs' work does not keep out a run's fair share
        room = min(free if free > 0 else owed, MOST_AT_ONCE)
        if room <= 0:
            return False
        if self._virtual_times is None:
            stored = await self._store.redis.hgetall(self._store.keys.share)
            self._virtual_times = _virtual_times(stored)
        plan_now = plan(
            waiting,
            room=room,
            slice_size=slice_size(
                waiting,
                room=room,
                workers=self._housekeeping.workers,
                most=self._settings.dispatcher.slice_size,
            ),
            virtual_times=self._virtual_times,
            most=None if free > 0 else left,
        )
        if not plan_now.takes:
            return False
        self._virtual_times = plan_now.virtual_times
        taken = await self._dispatch(plan_now.takes, left)
        pipeline = self._store.redis.pipeline(transaction=True)
        pipeline.delete(self._store.keys.share)
        pipeline.hset(self._store.keys.share, mapping=dict(self._virtual_times))
        await pipeline.execute()
        return taken > 0 and free > room < sum(batch.backlog for batch in waiting)

    async def _dispatch(self, takes: list[tuple[str, int]], shares_left: dict[str, int]) -> int:
        """Take rollouts as planned; send one job for each slice of one environment, and separate jobs for suspects.

        Rollouts within a run's fair share of the slots are urgent. Returns how many rollouts were taken.
        """
        sent_ms = self._housekeeping.server_ms()  # before taking: no rollout is older than the job that carries it
        jobs: list[Job] = []
        total = 0
        for batch_id, wanted in takes:
            suspects = await self._suspects.may_go(self._housekeeping.workers)
            taken: list[TakenRollout] = []
            async with self._quarantine.guard(batch_id, "its rollouts cannot be dispatched"):
                taken = await self._rollouts.take(
                    batch_id, wanted, parked=self._breakers.environments, suspects=suspects
                )
            run = self._batches[batch_id].run
            found = jobs_of(batch_id, taken, urgent=shares_left.get(run, 0) > 0)
            shares_left[run] = shares_left.get(run, 0) - len(taken)
            self._suspects.sent(found)
            jobs += found
            total += len(taken)
        await self._send(jobs, sent_ms)
        return total

    async def _send(self, jobs: list[Job], sent_ms: int) -> None:
        if jobs:
            await asyncio.to_thread(self._publisher.send, jobs, sent_ms)


def _virtual_time(run: bytes, value: bytes) -> tuple[str, float]:
    return run.decode(), float(value)


def _virtual_times(stored: dict[bytes, bytes]) -> dict[str, float]:
    """Return the virtual times that can be read; a run without one starts where the others are."""
    found = {}
    for run, value in stored.items():
        each = read_or_none("virtual time of run", run, _virtual_time, run, value)
        if each is not None and math.isfinite(each[1]):
            found[each[0]] = each[1]
    return found


def _backlog(batch: ActiveBatch) -> int:
    """Return the number of the batch's rollouts that may be sent now."""
    if batch.stopping is not None or batch.held:
        return 0
    return max(0, batch.queued - batch.dispatched - batch.parked)


def run(settings: Settings) -> None:
    """Run the dispatcher process until SIGTERM or SIGINT."""
    if settings.redis.url is None:
        raise SettingsError("the dispatcher needs redis.url (FARM_REDIS_URL)")
    asyncio.run(_main(settings, settings.redis.url))


async def _main(settings: Settings, redis_url: str) -> None:
    store = Store.connect(redis_url, prefix=settings.redis.prefix, timeout_s=settings.redis.timeout_s)
    publisher = Publisher(settings)
    dispatcher = Dispatcher(settings, store, publisher)
    loop = asyncio.get_running_loop()

    def stop() -> None:
        dispatcher.stop()
        end_within(STOP_S)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    liveness = await serve_liveness("dispatcher")  # it answers for as long as it is kept
    watching = loop.create_task(watch_for_eviction(redis_url, settings.redis.prefix), name="watch for eviction")
    try:
        await dispatcher.run()
    finally:
        watching.cancel()
        if liveness is not None:
            liveness.close()
        publisher.close()
        await store.close()
