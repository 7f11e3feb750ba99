"""A worker process: Celery's consumer in the main thread, one event loop beside it, a lease in a third."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import threading
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

from celery import Celery
from celery.exceptions import SecurityWarning
from celery.signals import worker_ready, worker_shutting_down

from gym.config import Settings
from gym.errors import SettingsError
from gym.processes.ending import end_within
from gym.processes.garbage import collect_garbage_less
from gym.processes.liveness import serve_liveness
from gym.sandbox.choose import require_named
from gym.state.redis.eviction import require_noeviction, watch_for_eviction
from gym.state.redis.format import require_data_format, require_format
from gym.state.redis.store import Store
from workers.jobs import register_jobs, register_judge_jobs
from workers.judging.runtime import JudgingRuntime
from workers.process.app import create_celery, judging_queue_name
from workers.process.consumer_steps import GatherEvents, admission_step, count_received
from workers.process.lease import LeaseKeeper
from workers.process.loop import LoopThread, keep_watchdog
from workers.process.messages import keep_message, messages_step
from workers.process.pace import keep_pace
from workers.process.slots import Slots
from workers.rollouts.runtime import Runtime

EXHAUSTED = 75  # EX_TEMPFAIL: a supervisor that restarts only what failed restarts this too
AWAY_END_S = 2.0  # from the end of a drain to the end of the process, where Redis is away
HEARTBEAT_S = 5.0  # of Celery's events, which Flower alone reads
_LOG = logging.getLogger(__name__)


def worker_name() -> str:
    """Different for each life of a process, so that a lease is never taken for an older one's."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"


def run(settings: Settings) -> int:
    """A worker: until SIGTERM, then drain; returns the exit code."""
    url = _redis_url(settings)
    require_named(settings.sandbox)
    slots = Slots(settings.worker.concurrency)
    runtime = Runtime(settings, worker_name(), slots, url, on_exhausted=lambda: os.kill(os.getpid(), signal.SIGTERM))
    return _run("worker", settings, create_celery(settings), runtime, partial(register_jobs, runtime=runtime))


def run_judging(settings: Settings) -> int:
    """A judge worker, likewise."""
    url = _redis_url(settings)
    # a judge's share is kept by the dispatcher, so that a slow one does not take the places of the others
    slots = Slots(settings.judging.concurrency * max(1, len(settings.judges)))
    runtime = JudgingRuntime(settings, worker_name(), slots, url)
    app = create_celery(
        settings,
        task_default_queue=judging_queue_name(settings.redis.prefix),
        worker_concurrency=slots.total,
    )
    return _run("judge-worker", settings, app, runtime, partial(register_judge_jobs, runtime=runtime))


def _redis_url(settings: Settings) -> str:
    if settings.redis.url is None:
        raise SettingsError("a worker needs redis.url (FARM_REDIS_URL)")
    return settings.redis.url


def _run(
    role: str,
    settings: Settings,
    app: Celery,
    runtime: Runtime | JudgingRuntime,
    register: Callable[[Celery, LoopThread], None],
) -> int:
    url, prefix = _redis_url(settings), settings.redis.prefix
    usable = require_noeviction(url) and require_format(url, prefix)
    require_data_format(settings.data_dir, create=True)
    name, slots = runtime.worker, runtime.slots
    loop = LoopThread("rollouts")
    loop.start()
    if not usable:
        loop.submit(watch_for_eviction(url, prefix))
    watchdog = loop.submit(keep_watchdog(settings.worker.hang_s))
    loop.submit(runtime.open()).result(30)
    lease = LeaseKeeper(
        _redis_url(settings),
        runtime.keys,
        name,
        ttl_s=settings.worker.lease_ttl_s,
        describe=runtime.describe,
    )
    liveness = loop.submit(serve_liveness(role, lease.problem)).result(10)  # it answers for as long as it is kept
    pace = loop.submit(keep_pace(slots)) if isinstance(runtime, Runtime) else None
    app.steps["consumer"].add(admission_step(slots))
    app.steps["consumer"].add(GatherEvents)
    aside = Store.connect(url, prefix=prefix, timeout_s=settings.redis.timeout_s)
    app.steps["consumer"].add(messages_step(lambda *said: loop.submit(keep_message(aside, *said))))
    count_received(slots)
    register(app, loop)
    app.finalize()

    drained = threading.Event()

    def status() -> int:
        return EXHAUSTED if runtime.exhausted else 0

    def drain(ends_at: float) -> None:
        lease.renew_now()
        loop.submit(runtime.drain(max(0.0, ends_at - time.monotonic()))).result(settings.worker.stop_s)
        drained.set()
        if not loop.submit(runtime.reaches_redis()).result(2 * AWAY_END_S):
            end_within(AWAY_END_S, status())  # Celery may wait for its broker for minutes

    def begin_drain(**_: Any) -> None:
        """Celery waits for the jobs' threads, which end when their rollouts do; this makes them end in time."""
        runtime.draining = True
        slots.close()
        end_within(settings.worker.stop_s, status())
        ends_at = time.monotonic() + settings.worker.drain_s
        threading.Thread(target=drain, args=(ends_at,), name="drain", daemon=True).start()

    def announce(**_: Any) -> None:
        lease.start()

    worker_ready.connect(announce, weak=False)
    worker_shutting_down.connect(begin_drain, weak=False)
    # it warns of pickle, which this app does not accept
    warnings.filterwarnings("ignore", category=SecurityWarning)
    worker = app.Worker(
        hostname=f"worker@{name}",
        loglevel=settings.log_level.upper(),
        without_gossip=True,
        without_mingle=True,
        heartbeat_interval=HEARTBEAT_S,
        optimization="fair",
        quiet=True,
    )
    collect_garbage_less()
    try:
        worker.start()
    finally:
        if not drained.wait(settings.worker.stop_s if runtime.draining else 0):
            _LOG.warning("worker ends without having drained", extra={"action": "drain_cut"})
        lease.stop()
        watchdog.cancel()
        if liveness is not None:
            loop.loop.call_soon_threadsafe(liveness.close)
        if pace is not None:
            pace.cancel()
        loop.submit(runtime.close()).result(15)
        loop.submit(aside.close()).result(5)
        loop.stop(5)
    return EXHAUSTED if runtime.exhausted else int(worker.exitcode or 0)
