"""What a worker process is made of, and how it runs a job's slice of rollouts.

Invariant: every claimed rollout either ends in one fenced change of state sent by the committer, or its claim has been
found void and it was cancelled. A job's thread waits for its slice; the slots it was given come back one by one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any

from gym.agents.outside.base import AgentProxy
from gym.agents.registry import AGENTS, outside_agents
from gym.batch import BatchSpec
from gym.config import Settings, proxy_url
from gym.environments.hosting.processes import EnvironmentProcesses
from gym.environments.hosting.threads import EnvironmentThreads
from gym.environments.registry import load_registry
from gym.environments.values import ValueBounds
from gym.host_rules import policy_rules
from gym.jsontypes import JsonObject
from gym.model_client.client import PolicyClient
from gym.results.blobs import BlobStore
from gym.sandbox.pool import close_loop_pool, configure_loop_pool
from gym.state.ledger.breakers import BreakerKey, BreakerKind, Breakers
from gym.state.ledger.judging import Judging
from gym.state.ledger.rollouts import Claim, Rollouts
from gym.state.policies import PolicyCache
from gym.state.redis.driver import RedisError
from gym.state.redis.keys import Keys
from gym.state.redis.store import RedisAway, Store, end_tasks
from workers.process.committer import Committer
from workers.process.slots import Slots
from workers.process.unheld import Unheld, compare_every_s
from workers.rollouts.breaker_reports import BreakerReports
from workers.rollouts.claims import Claims
from workers.rollouts.recording import HAND_BACK_BYTES, Recorder, kept_calls
from workers.rollouts.runner import Runner, RunningRollout, start
from workers.rollouts.session_host import SessionHost
from workers.rollouts.suspects import SuspectRuns

WATCH_S = 0.5
ANSWER_S = 2.0  # for Redis, before something is handed back
VOID_CLAIMS_S = 3.0
HAND_BACK_S = 6.0  # for rollouts to stop, and again for the changes to be made
_LOG = logging.getLogger(__name__)


class Runtime:
    """Lives on the worker's event loop."""

    def __init__(
        self, settings: Settings, worker: str, slots: Slots, redis_url: str, *, on_exhausted: Callable[[], None]
    ) -> None:
        """`on_exhausted` is called once when too much hangs here, and must bring about a drain and an end."""
        self.exhausted = False
        self._on_exhausted = on_exhausted
        self.worker = worker
        self.slots = slots
        self.draining = False
        self._settings = settings
        self._store = Store.connect(redis_url, prefix=settings.redis.prefix, timeout_s=settings.redis.timeout_s)
        self._rollouts = Rollouts(self._store)
        self._policies = PolicyCache(self._store, worker)
        self._committer = Committer(self._store)
        self._breakers = BreakerReports(
            Breakers(self._store, settings.breakers), self._rollouts, self._committer, on_release=self._reopen
        )
        self._running: dict[asyncio.Task[None], RunningRollout] = {}
        self._recorder = Recorder(
            worker=worker,
            rollouts=self._rollouts,
            judging=Judging(self._store),
            committer=self._committer,
            breakers=self._breakers,
            blobs=BlobStore(settings.data_dir / "blobs", inline_bytes=settings.results.inline_bytes),
            running=self._running.values,
            draining=lambda: self.draining,
        )
        self._suspects = SuspectRuns(
            slots=slots,
            rollouts=self._rollouts,
            committer=self._committer,
            start=lambda claim, spec: self._start(claim, spec, alone=True),
            draining=lambda: self.draining,
        )
        self._registry = load_registry(settings.environments, sandbox=settings.sandbox)
        self._threads = EnvironmentThreads(
            settings.worker.environment_threads, most_hung=settings.worker.max_hung_threads
        )
        self._processes = EnvironmentProcesses(settings.worker.environment_processes)
        bounds = ValueBounds(
            output_bytes=settings.worker.max_tool_output_bytes,
            argument_chars=settings.worker.max_tool_arguments_chars,
        )
        self._model = PolicyClient(settings.model, self._policies, hosts=policy_rules(settings))
        self._runner = Runner(
            registry=self._registry,
            agents={
                **AGENTS,
                **outside_agents(settings.agents, AgentProxy(self._store, proxy_url(settings)), settings.sandbox),
            },
            model=self._model,
            policies=self._policies,
            executor=self._threads,
            processes=self._processes,
            bounds=bounds,
        )
        self._sessions = SessionHost(
            self._store,
            settings.sessions,
            self._registry,
            self._threads,
            self._processes,
            worker,
            bounds,
            compare_every_s=compare_every_s(settings.worker.lease_ttl_s),
        )
        self._claims = Claims(self._store, self._policies, worker, draining=lambda: self.draining)
        self._unheld = Unheld(
            self._store,
            self._committer,
            worker,
            every_s=compare_every_s(settings.worker.lease_ttl_s),
            spec=self._claims.spec,
            held=self._held,
        )
        self._loose: set[asyncio.Task[None]] = set()  # that do not end though they were told to
        self._services: list[asyncio.Task[None]] = []
        self._idle = asyncio.Event()
        self._idle.set()
        self._ended = 0

    @property
    def keys(self) -> Keys:
        """The names in Redis that this worker uses."""
        return self._store.keys

    async def open(self) -> None:
        """Connect and start the services."""
        configure_loop_pool(self._settings.sandbox)
        await self._model.__aenter__()
        await self._first_look()
        loop = asyncio.get_running_loop()
        self._services = [
            loop.create_task(self._committer.run(), name="committer"),
            loop.create_task(self._policies.keep_fresh(self._lanes), name="policies"),
            loop.create_task(self._watch(), name="watch"),
            loop.create_task(self._sessions.run(), name="sessions"),
            loop.create_task(self._breakers.keep_fresh(self._running.values), name="breakers"),
        ]

    async def _first_look(self) -> None:
        """Without its policies a worker could only fail rollouts."""
        while True:
            try:
                return await self._policies.refresh()
            except RedisAway as error:
                _LOG.warning("the worker waits for Redis: %s", error, extra={"action": "redis_unavailable"})
                await asyncio.sleep(0.5)

    async def close(self) -> None:
        """Stop the services; `drain` comes first."""
        await self._committer.settle()
        await end_tasks(self._services)
        await self._sessions.close()
        await close_loop_pool()
        await self._model.__aexit__(None, None, None)
        await self._store.close()
        self._threads.close()
        await self._processes.close()

    def _lanes(self) -> dict[str, tuple[int, int]]:
        """Model calls in flight and held, by policy."""
        return {name: (int(load["in_flight"]), int(load["held"])) for name, load in self._model.load().items()}

    def describe(self) -> JsonObject:
        """What the worker says of itself with its lease; called from the lease's thread."""
        return {
            "concurrency": self.slots.total,
            "running": len(self._running),
            "taken": self.slots.taken,
            "ended": self._ended,
            "sessions": len(self._sessions),
            "draining": self.draining,
            "alone": self.slots.held,
            "environment_threads": self._threads.load(),
            "environment_processes": self._processes.load(),
            "hung": self._hung,
            "environments": self._registry.names(),
        }

    @property
    def _hung(self) -> int:
        """Threads and tasks of environments that go on after their rollout has ended."""
        return self._threads.hung + len(self._loose)

    async def run_slice(
        self, batch_id: str, environment: str, wanted: Sequence[tuple[str, int]], probe: BreakerKey | None = None
    ) -> int:
        """Claim what is still ours to run, run it side by side, and return how many that were.

        What is parked by now goes back, unless it is a probe.
        """
        started: list[RunningRollout] = []
        try:
            spec = None if self.draining else await self._claims.spec(batch_id)
            if self.draining or (spec is not None and probe is None and self._is_parked(batch_id, spec, environment)):
                await self._claims.bounce(batch_id, wanted)
            elif spec is not None:
                claims = await self._claims.claim(batch_id, wanted, self._here(batch_id))
                started = await self._begin(claims, spec, probe)
        finally:
            self.slots.free(len(wanted) - len(started))
        if probe is not None and not started:
            await self._breakers.probe_lost(probe)
        for running in started:
            await running.ended.wait()
        return len(started)

    async def run_alone(self, batch_id: str, wanted: Sequence[tuple[str, int]]) -> None:
        """Claim suspects and run them one by one, beside nothing else; the worker has been held for them."""
        try:
            if self.draining:
                await self._claims.bounce(batch_id, wanted)
            elif (spec := await self._claims.spec(batch_id)) is not None:
                claims = await self._claims.claim(batch_id, wanted, self._here(batch_id))
                if claims:
                    await self._suspects.run(claims, spec)
        finally:
            self.slots.release()

    def _here(self, batch_id: str) -> set[str]:
        """The members of a batch that run here."""
        return {running.claim.member for running in self._running.values() if running.claim.batch_id == batch_id}

    def _reopen(self, key: BreakerKey) -> None:
        if key.kind is BreakerKind.POLICY:
            self._model.reopen(key.name)

    def _is_parked(self, batch_id: str, spec: BatchSpec, environment: str) -> bool:
        return self._breakers.any_open and self._breakers.holds(batch_id, spec, environment)

    async def _begin(self, claims: Sequence[Claim], spec: BatchSpec, probe: BreakerKey | None) -> list[RunningRollout]:
        """What was claimed is run here at once, or handed back where a drain has begun meanwhile."""
        if self.draining:
            await self._hand_back([(claim, b"") for claim in claims])
            return []
        if probe is not None and claims:
            self._reopen(probe)
        return [self._start(claim, spec, probe=probe) for claim in claims]

    def _start(
        self, claim: Claim, spec: BatchSpec, *, probe: BreakerKey | None = None, alone: bool = False
    ) -> RunningRollout:
        running = start(claim, spec)
        running.probe, running.alone = probe, alone
        self._keep(self._run(running), running)
        self._idle.clear()
        return running

    def _keep(self, work: Coroutine[Any, Any, None], running: RunningRollout) -> None:
        task = asyncio.get_running_loop().create_task(work, name=str(running.rollout))
        self._running[task] = running
        task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._loose.discard(task)
        running = self._running.pop(task, None)
        error = None if task.cancelled() else task.exception()
        if running is None:
            return  # another task has ended its rollout
        self._ended += 1
        running.ended.set()
        if not running.alone:
            self.slots.free()
        if not self._running:
            self._idle.set()
        if error is not None:
            _LOG.error("rollout %s was not recorded: %s", task.get_name(), error, extra={"action": "commit_failed"})

    async def _run(self, running: RunningRollout) -> None:
        finished = await self._runner.run(running)
        if not running.loose:
            await self._recorder.record(running, finished)

    async def _watch(self) -> None:
        """Stop what was cancelled or given to others, and what has stalled."""
        while True:
            await asyncio.sleep(WATCH_S)
            self._stop_overdue(time.monotonic())
            self._threads.relieve()
            if self._hung >= self._settings.worker.max_hung_threads and not self.exhausted:
                self.exhausted = True
                _LOG.error(
                    "%d environment calls hang; this worker drains and ends", self._hung, extra={"action": "exhausted"}
                )
                self._on_exhausted()
            try:
                async with asyncio.timeout(VOID_CLAIMS_S):
                    await self._stop_void_claims()
                    await self._compare()
            except (RedisError, TimeoutError) as error:
                _LOG.warning("claims not checked: %s", error, extra={"action": "watch_failed"})

    def _stop_overdue(self, now: float) -> None:
        for task, running in list(self._running.items()):
            if running.committing:
                continue
            if not running.stopping and running.idle_s(now) > running.spec.limits.stall_timeout_s:
                running.stalled = True
                running.stop(task)
            if now > running.give_up_at:
                self._cut_loose(task, running)

    def _cut_loose(self, task: asyncio.Task[None], running: RunningRollout) -> None:
        """End a rollout whose code swallows its cancellation; what is left of it is counted and waited for no more."""
        _LOG.error("rollout %s does not end", running.rollout, extra={"action": "rollout_loose"})
        running.loose = running.committing = True
        del self._running[task]
        self._loose.add(task)
        self._keep(self._recorder.commit(running, self._runner.cut_off(running)), running)

    async def _stop_void_claims(self) -> None:
        tasks = [(task, running) for task, running in self._running.items() if not running.committing]
        if not tasks:
            return
        standing = await self._rollouts.still_mine([running.claim for _, running in tasks], self.worker)
        for (task, running), mine in zip(tasks, standing, strict=True):
            if not mine and not running.stopping and not running.committing:
                running.stop(task)

    async def reaches_redis(self) -> bool:
        """Return whether something can be handed back now."""
        return await self._store.answers(within_s=ANSWER_S)

    async def _compare(self) -> None:
        """Hand back what Redis says is here and is not, and close what it does not know; a drain does that anyway."""
        if not self.draining:
            told = await self._unheld.hand_back_when_due()
            await self._sessions.compare_when_due(() if told is None else told.sessions)

    def _held(self) -> set[tuple[str, str, str]]:
        """The (batch, member, token) that this worker has or is about to have, the token empty of what it claims."""
        claims = [*(running.claim for running in self._running.values()), *self._suspects.waiting]
        held = {(claim.batch_id, claim.member, claim.token) for claim in claims}
        return held | {(batch_id, member, "") for batch_id, member in self._claims.under_way}

    async def drain(self, timeout_s: float) -> None:
        """Take nothing more, wait for what runs, and hand back what is left without using up its attempt.

        What its model calls came to goes along, so that none is made again. Where Redis has been away, the lease ends
        and others run them; what has finished here is kept until the end of the drain.
        """
        self.draining = True
        self.slots.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
                return
        left = list(self._running.items())
        if not await self.reaches_redis():
            _LOG.warning("%d rollouts are left to their lease", len(left), extra={"action": "drain_away"})
            for task, _ in left:
                task.cancel()
            await asyncio.wait([task for task, _ in left], timeout=ANSWER_S)
            return
        _LOG.info("handing %d rollouts back", len(left), extra={"action": "drain_release"})
        for task, running in left:
            if not running.committing:
                running.handing_back = True
                running.stop(task)
        await asyncio.wait([task for task, _ in left], timeout=HAND_BACK_S)
        room = HAND_BACK_BYTES
        claims = []
        for _, running in left:
            if running.handing_back:
                calls = kept_calls(running, most_bytes=room)
                room -= len(calls)
                claims.append((running.claim, calls))
        await self._hand_back(claims)

    async def _hand_back(self, claims: Sequence[tuple[Claim, bytes]]) -> None:
        """Let others go on with these attempts, from the model calls that go along."""
        sent = [
            self._committer.send(self._rollouts.retry_call(claim, b"", 0, replay=replay)) for claim, replay in claims
        ]
        if sent:
            await asyncio.wait_for(asyncio.gather(*sent), timeout=HAND_BACK_S)
