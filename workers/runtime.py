"""What a worker process is made of, and how it runs a job's slice of rollouts.

Invariant: every claimed rollout either ends in one fenced change of state sent by the committer, or its claim has been
found void and it was cancelled. A job's thread waits for its slice; the slots it was given come back one by one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import orjson
from redis.exceptions import RedisError

from gym.agents.registry import AGENTS
from gym.batch import BatchSpec
from gym.config import Settings
from gym.environments.registry import load_registry
from gym.jsontypes import JsonObject
from gym.proxy.client import PolicyClient
from gym.results.blobs import BlobStore
from gym.state.breakers import BreakerKey, BreakerKind, Breakers
from gym.state.keys import Keys
from gym.state.policies import PolicyCache
from gym.state.rollouts import Claim, Commit, Rollouts
from gym.state.store import RedisAway, Store, end_tasks
from workers.breakers import BreakerWatch
from workers.committer import Committer
from workers.record import error_line, packed_trajectory, record, sums
from workers.retries import retry_in_s
from workers.runner import Finished, Runner, Running, start
from workers.sessions import SessionHost
from workers.slots import Slots
from workers.suspects import SuspectRuns

WATCH_S = 0.5
_LOG = logging.getLogger(__name__)


class Runtime:
    """Lives on the worker's event loop."""

    def __init__(self, settings: Settings, worker: str, slots: Slots, redis_url: str) -> None:
        self.worker = worker
        self.slots = slots
        self.draining = False
        self._settings = settings
        self._store = Store.connect(redis_url, prefix=settings.redis.prefix, timeout_s=settings.redis.timeout_s)
        self._rollouts = Rollouts(self._store)
        self._blobs = BlobStore(settings.data_dir / "blobs", inline_bytes=settings.results.inline_bytes)
        self._policies = PolicyCache(self._store, worker)
        self._committer = Committer(self._store)
        self._breakers = BreakerWatch(
            Breakers(self._store, settings.breakers), self._rollouts, self._committer, on_release=self._reopen
        )
        self._suspects = SuspectRuns(
            slots=slots,
            rollouts=self._rollouts,
            committer=self._committer,
            start=lambda claim, spec: self._start(claim, spec, alone=True),
            draining=lambda: self.draining,
        )
        self._registry = load_registry(settings.environments)
        self._executor = ThreadPoolExecutor(settings.worker.environment_threads, thread_name_prefix="environment")
        self._model = PolicyClient(settings.model, self._policies)
        self._runner = Runner(
            registry=self._registry,
            agents=AGENTS,
            model=self._model,
            policies=self._policies,
            executor=self._executor,
        )
        self._sessions = SessionHost(self._store, settings.sessions, self._registry, self._executor, worker)
        self._specs: dict[str, BatchSpec] = {}
        self._running: dict[asyncio.Task[None], Running] = {}
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
        await self._model.__aenter__()
        await self._policies.refresh()
        loop = asyncio.get_running_loop()
        self._services = [
            loop.create_task(self._committer.run(), name="committer"),
            loop.create_task(self._policies.keep_fresh(self._lanes), name="policies"),
            loop.create_task(self._watch(), name="watch"),
            loop.create_task(self._sessions.run(), name="sessions"),
            loop.create_task(self._breakers.keep_fresh(self._running.values), name="breakers"),
        ]

    async def close(self) -> None:
        """Stop the services; `drain` comes first."""
        await end_tasks(self._services)
        await self._sessions.close()
        await self._model.__aexit__(None, None, None)
        await self._store.close()
        self._executor.shutdown(wait=False, cancel_futures=True)

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
            "environments": self._registry.names(),
        }

    async def run_slice(
        self, batch_id: str, environment: str, wanted: Sequence[tuple[str, int]], probe: BreakerKey | None = None
    ) -> int:
        """Claim what is still ours to run, run it side by side, and return how many that were.

        What is parked by now goes back, unless it is a probe.
        """
        claims: list[Claim] = []
        try:
            if self.draining or (probe is None and await self._is_parked(batch_id, environment)):
                await self._bounce(batch_id, wanted)
            else:
                claims = await self._claim(batch_id, wanted)
        finally:
            self.slots.free(len(wanted) - len(claims))
        if not claims:
            if probe is not None:
                await self._breakers.probe_lost(probe)
            return 0
        if probe is not None:
            self._reopen(probe)
        spec = await self._spec(batch_id)
        tasks = [self._start(claim, spec, probe=probe) for claim in claims]
        await asyncio.wait(tasks)
        return len(tasks)

    async def run_alone(self, batch_id: str, wanted: Sequence[tuple[str, int]]) -> None:
        """Claim suspects and run them one by one, beside nothing else; the worker has been held for them."""
        try:
            if self.draining:
                await self._bounce(batch_id, wanted)
            elif claims := await self._claim(batch_id, wanted):
                await self._suspects.run(claims, await self._spec(batch_id))
        finally:
            self.slots.release()

    def _reopen(self, key: BreakerKey) -> None:
        if key.kind is BreakerKind.POLICY:
            self._model.reopen(key.name)

    async def _is_parked(self, batch_id: str, environment: str) -> bool:
        return self._breakers.any_open and self._breakers.holds(batch_id, await self._spec(batch_id), environment)

    async def _claim(self, batch_id: str, wanted: Sequence[tuple[str, int]]) -> list[Claim]:
        """Jobs that cannot be claimed now are sent again by the dispatcher."""
        try:
            return await self._rollouts.claim(batch_id, self.worker, wanted)
        except RedisError as error:
            _LOG.warning("slice of %s not claimed: %s", batch_id, error, extra={"action": "claim_failed"})
            return []

    async def _bounce(self, batch_id: str, wanted: Sequence[tuple[str, int]]) -> None:
        """A draining worker starts nothing; what it cannot give back is found when it is overdue."""
        try:
            await self._rollouts.bounce(batch_id, wanted)
        except RedisError as error:
            _LOG.warning("slice of %s not given back: %s", batch_id, error, extra={"action": "bounce_failed"})

    async def _spec(self, batch_id: str) -> BatchSpec:
        """A batch's options, which never change; asked for until Redis answers."""
        while (spec := self._specs.get(batch_id)) is None:
            try:
                text = await self._store.redis.hget(self._store.keys.batch(batch_id).meta, "spec")
            except RedisAway:
                await asyncio.sleep(0.5)
                continue
            if len(self._specs) > 1000:
                self._specs.clear()
            self._specs[batch_id] = BatchSpec.model_validate(orjson.loads(text))
        return spec

    def _start(
        self, claim: Claim, spec: BatchSpec, *, probe: BreakerKey | None = None, alone: bool = False
    ) -> asyncio.Task[None]:
        running = start(claim, spec)
        running.probe, running.alone = probe, alone
        task = asyncio.get_running_loop().create_task(self._run(running), name=str(running.rollout))
        self._running[task] = running
        self._idle.clear()
        task.add_done_callback(self._on_done)
        return task

    def _on_done(self, task: asyncio.Task[None]) -> None:
        running = self._running.pop(task)
        self._ended += 1
        if not running.alone:
            self.slots.free()
        if not self._running:
            self._idle.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            _LOG.error("rollout %s was not recorded: %s", task.get_name(), error, extra={"action": "commit_failed"})

    async def _run(self, running: Running) -> None:
        finished = await self._runner.run(running)
        running.committing = True
        error = finished.error
        if await self._breakers.ended(running, error, self._running.values()):
            await self._committer.send(self._rollouts.retry_call(running.claim, b"", 0))
            self._committer.add_total("handed_back")
            return
        delay_s = None if error is None else retry_in_s(error, running.claim.tries, running.spec.limits)
        if error is not None and delay_s is not None:
            line = error_line(running, error, self.worker)
            await self._committer.send(self._rollouts.retry_call(running.claim, line, delay_s))
            self._committer.add_total("retries")
            return
        await self._commit(running, finished)

    async def _commit(self, running: Running, finished: Finished) -> None:
        packed = packed_trajectory(running, finished)
        blob = b""
        if packed is not None:
            blob = await self._blobs.write(running.rollout, running.claim.attempt, packed)
        outcome = "failed" if finished.error is not None else "succeeded"
        spec = running.spec
        commit = Commit(
            outcome=outcome,
            record=record(running, finished, self.worker),
            trajectory=blob,
            usable=finished.reward is not None,
            early_stop=spec.early_stop.min_usable if spec.early_stop is not None else 0,
            sums=sums(finished),
        )
        answer = self._rollouts.committed(await self._committer.send(self._rollouts.commit_call(running.claim, commit)))
        if answer.verdict:
            self._committer.add_total(f"rollouts:{outcome}")
        else:
            self._committer.add_total("fenced")
        if answer.stopped:
            self._committer.add_total("rollouts:cancelled", answer.stopped)

    async def _watch(self) -> None:
        """Stop what was cancelled or given to others, and what has stalled."""
        while True:
            await asyncio.sleep(WATCH_S)
            now = time.monotonic()
            for task, running in list(self._running.items()):
                if running.stalled or running.committing:
                    continue
                if running.idle_s(now) > running.spec.limits.stall_timeout_s:
                    running.stalled = True
                    task.cancel()
            try:
                await self._stop_void_claims()
            except RedisError as error:
                _LOG.warning("claims not checked: %s", error, extra={"action": "watch_failed"})

    async def _stop_void_claims(self) -> None:
        tasks = [(task, running) for task, running in self._running.items() if not running.committing]
        if not tasks:
            return
        standing = await self._rollouts.still_mine([running.claim for _, running in tasks])
        for (task, running), mine in zip(tasks, standing, strict=True):
            if not mine and not running.stalled and not running.committing:
                task.cancel()

    async def drain(self, timeout_s: float) -> None:
        """Take nothing more, wait for what runs, and hand back what is left without using up its attempt."""
        self.draining = True
        self.slots.close()
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            left = list(self._running.items())
            _LOG.info("handing %d rollouts back", len(left), extra={"action": "drain_release"})
            for task, _ in left:
                task.cancel()
            await asyncio.wait([task for task, _ in left], timeout=10)
            calls = [self._rollouts.retry_call(running.claim, b"", 0) for _, running in left]
            await asyncio.wait_for(asyncio.gather(*map(self._committer.send, calls)), timeout=10)
