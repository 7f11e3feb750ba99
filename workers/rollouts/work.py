"""A worker's part of a slice's life: claims rollouts, runs episodes, records outcomes (`SliceWork`).

Invariant: a claim that Redis has made is never lost here: the claim is idempotent, and is repeated until answered.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any

from gym.batch import BatchSpec
from gym.config import Settings
from gym.environments.hosting.processes import EnvironmentProcesses
from gym.environments.hosting.threads import EnvironmentThreads
from gym.environments.registry import Registry
from gym.jsontypes import JsonObject
from gym.model_client.client import PolicyClient
from gym.sandbox.pool import close_loop_pool, configure_loop_pool
from gym.state.assignments import Told
from gym.state.ledger.breakers import BreakerKey, BreakerKind
from gym.state.ledger.rollouts import Claim, Rollouts
from gym.state.policies import PolicyCache
from gym.state.redis.driver import RedisError
from gym.state.redis.store import RedisAway, Store
from workers.process.committer import Committer
from workers.process.held_rollouts import HeldRollouts
from workers.process.slice_runtime import Slice
from workers.process.slots import Slots
from workers.process.specs import AGAIN_S, Specs
from workers.rollouts.breaker_reports import BreakerReports
from workers.rollouts.recording import HAND_BACK_BYTES, Recorder, kept_calls
from workers.rollouts.runner import Runner, RunningRollout, start
from workers.rollouts.session_host import SessionHost

_LOG = logging.getLogger(__name__)


class RolloutWork:
    """The work of one worker, on its event loop; a `SliceWork`."""

    def __init__(
        self,
        settings: Settings,
        worker: str,
        slots: Slots,
        held: HeldRollouts[RunningRollout],
        *,
        store: Store,
        rollouts: Rollouts,
        specs: Specs,
        policies: PolicyCache,
        committer: Committer,
        breakers: BreakerReports,
        recorder: Recorder,
        runner: Runner,
        model: PolicyClient,
        registry: Registry,
        threads: EnvironmentThreads,
        processes: EnvironmentProcesses,
        sessions: SessionHost,
    ) -> None:
        self._settings = settings
        self._worker = worker
        self._slots = slots
        self._held = held
        self._store = store
        self._rollouts = rollouts
        self._specs = specs
        self._policies = policies
        self._committer = committer
        self._breakers = breakers
        self._recorder = recorder
        self._runner = runner
        self._model = model
        self._registry = registry
        self._threads = threads
        self._processes = processes
        self._sessions = sessions

    async def open(self) -> Mapping[str, Coroutine[Any, Any, None]]:
        """Connect; return the services to run until the end, by name."""
        configure_loop_pool(self._settings.sandbox)
        await self._model.__aenter__()
        await self._wait_for_policies()
        return {
            "committer": self._committer.run(),
            "policies": self._policies.keep_fresh(self._lanes),
            "sessions": self._sessions.run(),
            "breakers": self._breakers.keep_fresh(self._held.runs),
        }

    async def _wait_for_policies(self) -> None:
        """Wait for the policies: without them a worker could only fail rollouts."""
        while True:
            try:
                return await self._policies.refresh()
            except RedisAway as error:
                _LOG.warning("the worker waits for Redis: %s", error, extra={"action": "redis_unavailable"})
                await asyncio.sleep(AGAIN_S)

    async def settle(self) -> None:
        """Wait a moment for changes that are being sent."""
        await self._committer.settle()

    async def close(self) -> None:
        """Disconnect; the services have ended."""
        await self._sessions.close()
        await close_loop_pool()
        await self._model.__aexit__(None, None, None)
        await self._store.close()
        self._threads.close()
        await self._processes.close()

    def _lanes(self) -> dict[str, tuple[int, int]]:
        """Return the model calls in flight and held, by policy."""
        return {name: (int(load["in_flight"]), int(load["held"])) for name, load in self._model.load().items()}

    def describe(self) -> JsonObject:
        """Return the worker's description for its lease; called from the lease's thread."""
        return {
            "concurrency": self._slots.total,
            "running": len(self._held.running),
            "taken": self._slots.taken,
            "sessions": len(self._sessions),
            "alone": self._slots.held,
            "environment_threads": self._threads.load(),
            "environment_processes": self._processes.load(),
            "hung": self._threads.hung + len(self._held.loose),
            "environments": self._registry.names(),
        }

    async def spec(self, batch_id: str) -> BatchSpec | None:
        """Return a batch's spec, None as of `Specs.get`; its policy may have been registered a moment ago."""
        spec = await self._specs.get(batch_id)
        if spec is not None and isinstance(spec.policy, str) and self._policies.get(spec.policy) is None:
            try:
                await self._policies.refresh()
            except RedisError as error:
                _LOG.warning("policies not refreshed: %s", error, extra={"action": "policies_stale"})
        return spec

    def is_parked(self, job: Slice[int], spec: BatchSpec) -> bool:
        """Return whether the circuit breaker of the policy or the environment is open."""
        return self._breakers.any_open and self._breakers.holds(job.batch_id, spec, job.environment)

    async def bounce(self, job: Slice[int]) -> None:
        """Give rollouts back that were not claimed."""
        await self._rollouts.bounce(job.batch_id, job.wanted)

    async def claim(self, job: Slice[int], here: set[str]) -> Sequence[Claim]:
        """Claim the rollouts that are not `here` already: a job that was delivered twice runs once."""
        fresh = [(member, attempt) for member, attempt in job.wanted if member not in here]
        return await self._rollouts.claim(job.batch_id, self._worker, fresh) if fresh else []

    def make(self, claim: Claim, spec: BatchSpec, probe: BreakerKey | None) -> RunningRollout:
        """Return a claim as a run that has not started."""
        running = start(claim, spec)
        running.probe = probe
        return running

    async def prepare(self, runs: Sequence[RunningRollout], probe: BreakerKey | None) -> None:  # noqa: ARG002
        """Let a probe reach its policy."""
        if probe is not None:
            self.reopen(probe)

    def reopen(self, key: BreakerKey) -> None:
        """Let model calls through to a policy whose circuit breaker is probed or closed."""
        if key.kind is BreakerKind.POLICY:
            self._model.reopen(key.name)

    async def run(self, run: RunningRollout) -> None:
        """Run an episode and record it, unless it is loose by then."""
        finished = await self._runner.run(run)
        if not run.loose:
            await self._recorder.record(run, finished)

    async def cut_off(self, run: RunningRollout) -> None:
        """Commit the end of a rollout that ignores its cancellation."""
        await self._recorder.commit(run, self._runner.cut_off(run))

    async def hand_back(self, runs: Sequence[RunningRollout]) -> None:
        """Let other workers continue these attempts from their model calls, which are not made again."""
        room = HAND_BACK_BYTES
        sent = []
        for run in runs:
            calls = kept_calls(run, most_bytes=room)
            room -= len(calls)
            sent.append(self._committer.send(self._rollouts.retry_call(run.claim, b"", 0, replay=calls)))
        await asyncio.gather(*sent)

    async def probe_lost(self, probe: BreakerKey) -> None:
        """Report that a probe arrived and was not run."""
        await self._breakers.probe_lost(probe)

    def relieve(self) -> int:
        """Replace environment threads that hang; return how many there are."""
        self._threads.relieve()
        return self._threads.hung

    async def compared(self, told: Told | None) -> None:
        """Close the sessions that Redis does not know, after a comparison."""
        await self._sessions.compare_when_due(() if told is None else told.sessions)
