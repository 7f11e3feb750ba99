"""A worker process: Celery's consumer in the main thread, one event loop beside it, a lease in a third."""

from __future__ import annotations

import logging
import math
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

from gym.agents.outside.base import AgentProxy
from gym.agents.registry import AGENTS, outside_agents
from gym.config import Settings, proxy_url
from gym.environments.hosting.processes import EnvironmentProcesses
from gym.environments.hosting.threads import EnvironmentThreads
from gym.environments.registry import load_registry
from gym.environments.values import ValueBounds
from gym.errors import SettingsError
from gym.host_rules import judge_rules, policy_rules
from gym.judges.desk import Desk
from gym.model_client.client import PolicyClient
from gym.processes.ending import end_within
from gym.processes.garbage import collect_garbage_less
from gym.processes.liveness import serve_liveness
from gym.results.blobs import BlobStore
from gym.sandbox.choose import require_named
from gym.state.ledger.breakers import BreakerKind, Breakers
from gym.state.ledger.judging import JudgeClaim, Judging
from gym.state.ledger.rollouts import Claim, Rollouts
from gym.state.policies import PolicyCache
from gym.state.redis.eviction import require_noeviction, watch_for_eviction
from gym.state.redis.format import require_data_format, require_format
from gym.state.redis.keys import Keys
from gym.state.redis.store import Store
from gym.state.replicas import ReplicaCache
from gym.state.verdicts import StoredVerdicts
from workers.jobs import register_jobs, register_judge_jobs
from workers.judging.breaker_reports import JudgeBreakerReports
from workers.judging.runner import JudgedRollout, JudgeRunner
from workers.judging.work import JudgeWork
from workers.process.app import create_celery, judging_queue_name
from workers.process.committer import Committer
from workers.process.consumer_steps import GatherEvents, admission_step, count_received
from workers.process.held_rollouts import HeldRollouts
from workers.process.lease import LeaseKeeper
from workers.process.loop import LoopThread, keep_watchdog
from workers.process.messages import keep_message, messages_step
from workers.process.slice_runtime import SliceRuntime
from workers.process.slots import Slots, keep_pace
from workers.process.specs import Specs
from workers.process.unheld import Unheld, compare_every_s
from workers.rollouts.breaker_reports import BreakerReports
from workers.rollouts.recording import Recorder
from workers.rollouts.runner import Runner, RunningRollout
from workers.rollouts.session_host import SessionHost
from workers.rollouts.suspects import SuspectRuns
from workers.rollouts.work import RolloutWork

EXHAUSTED = 75  # EX_TEMPFAIL: a supervisor that restarts only failed processes restarts this too
AWAY_END_S = 2.0  # from the end of a drain to the end of the process, if Redis is away
HEARTBEAT_S = 5.0  # of Celery's events, which Flower alone reads
_LOG = logging.getLogger(__name__)


def worker_name() -> str:
    """Return a name that is unique to this process, so that its lease is never taken for an older one's."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"


def run(settings: Settings) -> int:
    """Run a worker until SIGTERM, then drain; returns the exit code."""
    url = _redis_url(settings)
    require_named(settings.sandbox)
    runtime, suspects = _rollout_runtime(settings, url, Slots(settings.worker.concurrency))
    register = partial(register_jobs, runtime=runtime, suspects=suspects)
    return _run("worker", settings, create_celery(settings), runtime, register, paced=True)


def run_judging(settings: Settings) -> int:
    """Run a judge worker until SIGTERM, then drain; returns the exit code."""
    url = _redis_url(settings)
    # the dispatcher keeps each judge's share, so that a slow judge does not take the slots of the others
    slots = Slots(settings.judging.concurrency * max(1, len(settings.judges)))
    runtime = _judge_runtime(settings, url, slots)
    app = create_celery(
        settings,
        task_default_queue=judging_queue_name(settings.redis.prefix),
        worker_concurrency=slots.total,
    )
    return _run("judge-worker", settings, app, runtime, partial(register_judge_jobs, runtime=runtime))


def _rollout_runtime(
    settings: Settings, url: str, slots: Slots
) -> tuple[SliceRuntime[Claim, RunningRollout, int], SuspectRuns]:
    """Compose the parts of a worker."""
    worker = worker_name()
    store = Store.connect(url, prefix=settings.redis.prefix, timeout_s=settings.redis.timeout_s)
    rollouts, committer, policies = Rollouts(store), Committer(store), PolicyCache(store, worker)
    held: HeldRollouts[RunningRollout] = HeldRollouts()
    registry = load_registry(settings.environments, sandbox=settings.sandbox)
    threads = EnvironmentThreads(settings.worker.environment_threads, most_hung=settings.worker.max_hung_threads)
    processes = EnvironmentProcesses(settings.worker.environment_processes)
    bounds = ValueBounds(
        output_bytes=settings.worker.max_tool_output_bytes, argument_chars=settings.worker.max_tool_arguments_chars
    )
    model = PolicyClient(settings.model, policies, hosts=policy_rules(settings))
    breakers = BreakerReports(
        Breakers(store, settings.breakers),
        rollouts,
        committer,
        on_release=lambda key: model.reopen(key.name) if key.kind is BreakerKind.POLICY else None,
    )
    compare_s = compare_every_s(settings.worker.lease_ttl_s)
    work = RolloutWork(
        settings,
        worker,
        slots,
        held,
        store=store,
        rollouts=rollouts,
        specs=Specs(store, draining=held.is_draining),
        policies=policies,
        committer=committer,
        breakers=breakers,
        recorder=Recorder(
            worker=worker,
            rollouts=rollouts,
            judging=Judging(store),
            committer=committer,
            breakers=breakers,
            blobs=BlobStore(settings.data_dir / "blobs", inline_bytes=settings.results.inline_bytes),
            running=held.runs,
            draining=held.is_draining,
        ),
        runner=Runner(
            registry=registry,
            agents={
                **AGENTS,
                **outside_agents(settings.agents, AgentProxy(store, proxy_url(settings)), settings.sandbox),
            },
            model=model,
            policies=policies,
            executor=threads,
            processes=processes,
            bounds=bounds,
        ),
        model=model,
        registry=registry,
        threads=threads,
        processes=processes,
        sessions=SessionHost(
            store, settings.sessions, registry, threads, processes, worker, bounds, compare_every_s=compare_s
        ),
    )
    runtime = SliceRuntime(
        work,
        held,
        worker=worker,
        slots=slots,
        ledger=rollouts,
        unheld=Unheld(store, committer, worker, every_s=compare_s, spec=work.spec, held=held.names),
        answers=lambda within_s: store.answers(within_s=within_s),
        most_hung=settings.worker.max_hung_threads,
        on_exhausted=lambda: os.kill(os.getpid(), signal.SIGTERM),
    )
    return runtime, SuspectRuns(runtime, held, rollouts, committer)


def _judge_runtime(settings: Settings, url: str, slots: Slots) -> SliceRuntime[JudgeClaim, JudgedRollout, str]:
    """Compose the parts of a judge worker."""
    worker = worker_name()
    store = Store.connect(url, prefix=settings.redis.prefix, timeout_s=settings.redis.timeout_s)
    rollouts, judging, committer = Rollouts(store), Judging(store), Committer(store)
    held: HeldRollouts[JudgedRollout] = HeldRollouts()
    specs = Specs(store, draining=held.is_draining)
    replicas = ReplicaCache(store, settings.judges, judge_rules(settings))
    desk = Desk(
        settings.judges,
        replicas,
        published_version=replicas.version,
        store=StoredVerdicts(store, keep_s=settings.judging.keep_verdicts_s),
        hosts=judge_rules(settings),
    )
    breakers = JudgeBreakerReports(Breakers(store, settings.breakers), committer, desk, replicas)
    work = JudgeWork(
        worker,
        held,
        per_judge=settings.judging.concurrency,
        store=store,
        rollouts=rollouts,
        judging=judging,
        specs=specs,
        committer=committer,
        desk=desk,
        replicas=replicas,
        breakers=breakers,
        runner=JudgeRunner(
            registry=load_registry(settings.environments, sandbox=settings.sandbox),
            desk=desk,
            judging=judging,
            blobs=BlobStore(settings.data_dir / "blobs", inline_bytes=settings.results.inline_bytes),
            parked=breakers.parked,
        ),
    )
    every_s = compare_every_s(settings.worker.lease_ttl_s)
    return SliceRuntime(
        work,
        held,
        worker=worker,
        slots=slots,
        ledger=rollouts,
        unheld=Unheld(store, committer, worker, every_s=every_s, spec=specs.get, held=held.names),
        answers=lambda within_s: store.answers(within_s=within_s),
        most_hung=math.inf,
        on_exhausted=lambda: None,
    )


def _redis_url(settings: Settings) -> str:
    if settings.redis.url is None:
        raise SettingsError("a worker needs redis.url (FARM_REDIS_URL)")
    return settings.redis.url


def _run(
    role: str,
    settings: Settings,
    app: Celery,
    runtime: SliceRuntime[Any, Any, Any],
    register: Callable[[Celery, LoopThread], None],
    *,
    paced: bool = False,
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
        Keys(prefix),
        name,
        ttl_s=settings.worker.lease_ttl_s,
        describe=runtime.describe,
    )
    liveness = loop.submit(serve_liveness(role, lease.problem)).result(10)  # it answers for as long as it is kept
    pace = loop.submit(keep_pace(slots)) if paced else None
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
        """Make rollouts end in time: Celery waits for the jobs' threads, which end when their rollouts do."""
        runtime.begin_drain()
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
