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

import orjson
from redis.exceptions import RedisError

from gym.agents.registry import AGENTS
from gym.batch import BatchSpec
from gym.config import Settings
from gym.environments.registry import load_registry
from gym.environments.threads import EnvironmentThreads
from gym.jsontypes import JsonObject
from gym.proxy.client import PolicyClient
from gym.results.blobs import BlobStore
from gym.state.keys import Keys
from gym.state.policies import PolicyCache
from gym.state.rollouts import Claim, Commit, Rollouts
from gym.state.store import RedisAway, Store, end_tasks, will_pass
from workers.committer import Committer
from workers.record import error_line, packed_calls, packed_trajectory, record, sums
from workers.runner import Finished, Runner, Running, retry_delay_s, start
from workers.sessions import SessionHost
from workers.slots import Slots

WATCH_S = 0.5
CLAIM_AGAIN_S = 0.5
VOID_CLAIMS_S = 3.0
HAND_BACK_S = 6.0  # for rollouts to stop, and again for the changes to be made
HAND_BACK_BYTES = 64 * 2**20
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
        self._blobs = BlobStore(settings.data_dir / "blobs", inline_bytes=settings.results.inline_bytes)
        self._policies = PolicyCache(self._store, worker)
        self._committer = Committer(self._store)
        self._registry = load_registry(settings.environments)
        self._threads = EnvironmentThreads(
            settings.worker.environment_threads, most_hung=settings.worker.max_hung_threads
        )
        self._model = PolicyClient(settings.model, self._policies)
        self._runner = Runner(
            registry=self._registry,
            agents=AGENTS,
            model=self._model,
            policies=self._policies,
            executor=self._threads,
        )
        self._sessions = SessionHost(self._store, settings.sessions, self._registry, self._threads, worker)
        self._specs: dict[str, BatchSpec] = {}
        self._running: dict[asyncio.Task[None], Running] = {}
        self._claiming: set[tuple[str, str]] = set()
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
        await self._model.__aenter__()
        await self._first_look()
        loop = asyncio.get_running_loop()
        self._services = [
            loop.create_task(self._committer.run(), name="committer"),
            loop.create_task(self._policies.keep_fresh(self._lanes), name="policies"),
            loop.create_task(self._watch(), name="watch"),
            loop.create_task(self._sessions.run(), name="sessions"),
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
        await end_tasks(self._services)
        await self._sessions.close()
        await self._model.__aexit__(None, None, None)
        await self._store.close()
        self._threads.close()

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
            "environment_threads": self._threads.load(),
            "hung": self._hung,
            "environments": self._registry.names(),
        }

    @property
    def _hung(self) -> int:
        """Threads and tasks of environments that go on after their rollout has ended."""
        return self._threads.hung + len(self._loose)

    async def run_slice(self, batch_id: str, wanted: Sequence[tuple[str, int]]) -> int:
        """Claim what is still ours to run, run it side by side, and return how many that were."""
        claims: list[Claim] = []
        try:
            if self.draining:
                await self._bounce(batch_id, wanted)
            else:
                claims = await self._claim(batch_id, wanted)
        finally:
            self.slots.free(len(wanted) - len(claims))
        if not claims:
            return 0
        spec = await self._spec(batch_id)
        if isinstance(spec.policy, str) and self._policies.get(spec.policy) is None:
            await self._look_for_policies()
        started = [self._start(claim, spec) for claim in claims]
        for running in started:
            await running.ended.wait()
        return len(started)

    async def _claim(self, batch_id: str, wanted: Sequence[tuple[str, int]]) -> list[Claim]:
        """Asked for until Redis answers, since a claim whose answer was lost would be held here and not run.

        What is refused, as by a full Redis, is sent again by the dispatcher. A job that came twice is run once.
        """
        here = {(running.claim.batch_id, running.claim.member) for running in self._running.values()} | self._claiming
        wanted = [each for each in wanted if (batch_id, each[0]) not in here]
        members = {(batch_id, member) for member, _ in wanted}
        self._claiming |= members
        try:
            while True:
                try:
                    return await self._rollouts.claim(batch_id, self.worker, wanted)
                except RedisError as error:
                    _LOG.warning("slice of %s not claimed: %s", batch_id, error, extra={"action": "claim_failed"})
                    if self.draining or not will_pass(error):
                        return []
                await asyncio.sleep(CLAIM_AGAIN_S)
        finally:
            self._claiming -= members

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

    async def _look_for_policies(self) -> None:
        """A policy that is not known here may have been registered a moment ago."""
        try:
            await self._policies.refresh()
        except RedisError as error:
            _LOG.warning("policies not refreshed: %s", error, extra={"action": "policies_stale"})

    def _start(self, claim: Claim, spec: BatchSpec) -> Running:
        running = start(claim, spec)
        self._keep(self._run(running), running)
        self._idle.clear()
        return running

    def _keep(self, work: Coroutine[Any, Any, None], running: Running) -> None:
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
        self.slots.free()
        if not self._running:
            self._idle.set()
        if error is not None:
            _LOG.error("rollout %s was not recorded: %s", task.get_name(), error, extra={"action": "commit_failed"})

    async def _run(self, running: Running) -> None:
        finished = await self._runner.run(running)
        if running.loose:
            return
        running.committing = True
        error = finished.error
        if error is not None and error.retryable and running.claim.attempt < running.spec.limits.max_attempts:
            line = error_line(running, error, self.worker)
            delay_s = retry_delay_s(running.claim.attempt)
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

    def _cut_loose(self, task: asyncio.Task[None], running: Running) -> None:
        """End a rollout whose code swallows its cancellation; what is left of it is counted and waited for no more."""
        _LOG.error("rollout %s does not end", running.rollout, extra={"action": "rollout_loose"})
        running.loose = running.committing = True
        del self._running[task]
        self._loose.add(task)
        self._keep(self._commit(running, self._runner.cut_off(running)), running)

    async def _stop_void_claims(self) -> None:
        tasks = [(task, running) for task, running in self._running.items() if not running.committing]
        if not tasks:
            return
        standing = await self._rollouts.still_mine([running.claim for _, running in tasks])
        for (task, running), mine in zip(tasks, standing, strict=True):
            if not mine and not running.stopping and not running.committing:
                running.stop(task)

    async def drain(self, timeout_s: float) -> None:
        """Take nothing more, wait for what runs, and hand back what is left without using up its attempt.

        What its model calls came to goes along, so that none is made again.
        """
        self.draining = True
        self.slots.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
                return
        left = list(self._running.items())
        _LOG.info("handing %d rollouts back", len(left), extra={"action": "drain_release"})
        for task, running in left:
            if not running.committing:
                running.handing_back = True
                running.stop(task)
        await asyncio.wait([task for task, _ in left], timeout=HAND_BACK_S)
        room = HAND_BACK_BYTES
        sent = []
        for _, running in left:
            if running.handing_back:
                calls = packed_calls(running, most_bytes=room)
                room -= len(calls)
                sent.append(self._committer.send(self._rollouts.retry_call(running.claim, b"", 0, replay=calls)))
        if sent:
            await asyncio.wait_for(asyncio.gather(*sent), timeout=HAND_BACK_S)
