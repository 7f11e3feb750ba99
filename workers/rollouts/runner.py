"""The run of one rollout, from its row to its outcome: environment, agent, verifier, record.

This is the rollout boundary: any error of an environment, a tool or a verifier ends here as data. Only cancellation
passes through, since then the claim is gone and nothing may be recorded.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
import time
import traceback
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from gym.agents.base import Agent, Model, PolicyLookup
from gym.agents.replay import unpack
from gym.batch import BatchSpec
from gym.environments.hosting.process_session import new_session
from gym.environments.hosting.processes import EnvironmentProcesses
from gym.environments.hosting.threads import EnvironmentThreads
from gym.environments.registry import Registry
from gym.environments.values import BOUNDS, ValueBounds
from gym.episode import EpisodeResult, Play, play, task_of
from gym.errors import BadRow, Internal, ModelUnreachable, NotFound, RolloutError, Stalled, TimedOut, text_of
from gym.ids import RolloutRef, parse_member
from gym.model_client.routing.served_model import ModelSource, ServedModel, inline_model
from gym.policy import PolicySpec
from gym.rollout import StopReason
from gym.state.ledger.breakers import BreakerKey
from gym.state.ledger.rollouts import Claim
from gym.state.redis.unreadable import DECODE_ERRORS, read_object, reason

LOOSE_S = 15.0  # longer than environments are given to close
_LOG = logging.getLogger(__name__)


@dataclass(slots=True)
class RunningRollout(Play):
    """A rollout under way; the watch reads `episode` and may set `stalled` before it cancels the task."""

    claim: Claim
    spec: BatchSpec
    rollout: RolloutRef
    stalled: bool = False
    stopping: bool = False  # its early end was requested
    committing: bool = False  # its outcome is being committed; nothing may interrupt that
    loose: bool = False  # its outcome was recorded without it, since it would not end
    give_up_at: float = math.inf  # when it is cut loose
    probe: BreakerKey | None = None  # the circuit breaker that it probes
    alone: bool = False  # nothing else runs in this worker
    ended: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.give_up_at = self.began + self.spec.limits.rollout_timeout_s + LOOSE_S

    def stop(self, task: asyncio.Task[None]) -> None:
        """Request its end."""
        self.stopping = True
        self.give_up_at = min(self.give_up_at, time.monotonic() + LOOSE_S)
        task.cancel()

    def find_stalled(self, now: float) -> bool:
        """Return whether it has been idle for too long, and note that as the reason of its end."""
        self.stalled = self.stalled or self.idle_s(now) > self.spec.limits.stall_timeout_s
        return self.stalled

    def idle_s(self, now: float) -> float:
        """Return the seconds since anything happened in it; waiting for its turn counts as activity."""
        since = self.episode.last_activity if self.episode is not None else self.began
        return now - max(since, self.waits.last(now) or since)


class Runner:
    """The runner of claims; one per worker process."""

    def __init__(
        self,
        *,
        registry: Registry,
        agents: Mapping[str, Agent],
        model: Model,
        policies: ModelSource,
        executor: EnvironmentThreads,
        processes: EnvironmentProcesses,
        bounds: ValueBounds = BOUNDS,
    ) -> None:
        self._bounds = bounds
        self._registry = registry
        self._agents = agents
        self._model = model
        self._policies = policies
        self._executor = executor
        self._processes = processes

    async def run(self, running: RunningRollout) -> EpisodeResult:
        """Run one claim. Raises only CancelledError."""
        running.timing.queued_s = _queued_s(running.claim)
        try:
            try:
                async with asyncio.timeout(running.spec.limits.rollout_timeout_s):
                    return await self._attempt(running)
            except TimeoutError:
                raise TimedOut(f"the rollout took longer than {running.spec.limits.rollout_timeout_s:g} s") from None
            except asyncio.CancelledError:
                if not running.stalled:
                    raise
                current = asyncio.current_task()
                if current is not None:
                    current.uncancel()
                raise Stalled(f"no model or tool activity for {running.spec.limits.stall_timeout_s:g} s") from None
        except RolloutError as error:
            return self._failed(running, error)
        except Exception as error:  # noqa: BLE001  # the rollout boundary: one rollout's fault is one failed result
            _LOG.exception("rollout %s failed", running.rollout, extra={"action": "rollout_internal"})
            where = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{text_of(error)} (at {where.filename.rpartition('/')[2]}:{where.lineno})"
            return self._failed(running, Internal(text))

    def cut_off(self, running: RunningRollout) -> EpisodeResult:
        """Return the outcome of a rollout that does not end by itself."""
        limits = running.spec.limits
        if running.stalled:
            return self._failed(running, Stalled(f"no activity for {limits.stall_timeout_s:g} s, and no end"))
        return self._failed(running, TimedOut(f"the rollout went on after {limits.rollout_timeout_s:g} s"))

    def _failed(self, running: RunningRollout, error: RolloutError) -> EpisodeResult:
        reason = {TimedOut: StopReason.TIMEOUT, Stalled: StopReason.STALLED}.get(type(error), StopReason.ERROR)
        episode = running.episode
        return EpisodeResult(
            stop_reason=reason,
            reward=None,
            error=error,
            trajectory=episode.trajectory if episode is not None else None,
            timing=running.close_timing(),
        )

    async def _attempt(self, running: RunningRollout) -> EpisodeResult:
        claim, spec = running.claim, running.spec
        try:
            kind = self._registry.get(claim.environment)
        except NotFound as error:
            raise BadRow(error.message) from error
        try:
            row = read_object(claim.row)
        except DECODE_ERRORS as error:
            raise BadRow(f"its stored row cannot be read: {reason(error)}") from error
        task = task_of(row, kind, task_id=claim.task_id, agent=spec.agent, sampling=spec.sampling)
        rollout_id = str(running.rollout)
        session = new_session(
            kind,
            task.data,
            seed=zlib.crc32(rollout_id.encode()),
            executor=self._executor,
            processes=self._processes,
            bounds=self._bounds,
        )
        replay = None
        if claim.replay:
            replay = unpack(claim.replay, attempt=claim.attempt, model=self._model)
            running.earlier_s = replay.elapsed_s if replay is not None else 0.0
        return await play(
            task,
            session,
            self._agents,
            replay or self._model,
            policy=self._policy(spec),
            limits=spec.limits,
            rollout_id=rollout_id,
            group_id=running.rollout.group_id,
            attempt=claim.attempt,
            state=running,
        )

    def _policy(self, spec: BatchSpec) -> PolicyLookup:
        """A source of the policy's current record for each model call."""
        policy = spec.policy
        if isinstance(policy, PolicySpec):
            record = inline_model(policy)
            return lambda: record
        if policy is None:
            raise Internal("the batch names no policy")
        return lambda: self._registered(policy)

    def _registered(self, name: str) -> ServedModel:
        record = self._policies.get(name)
        if record is None:
            raise ModelUnreachable(
                f"policy {name!r} is not registered any more; PUT /v1/policies/{name} and requeue the rollout"
            )
        return record


def _queued_s(claim: Claim) -> float:
    return max(0.0, (claim.claimed_at - claim.published_at) / 1000)


def start(claim: Claim, spec: BatchSpec) -> RunningRollout:
    """Return a claim as a run that is about to start."""
    return RunningRollout(claim, spec, parse_member(claim.batch_id, claim.member))
