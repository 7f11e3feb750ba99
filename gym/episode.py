"""One rollout in one process: an environment, an agent and a model, composed into a trajectory and a reward.

Workers, tests and `farm play` all use `play`. It knows neither Redis nor Celery.

Invariant: the environment is closed however the rollout ends. Faults are raised as RolloutError; the caller bounds the
time of the whole and makes a result of a fault.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gym.agents.base import Agent, Episode, Model, PolicyNow
from gym.environments.capacity import CapacityWaits, listen_to_waits
from gym.environments.hosting.session import EnvironmentSession
from gym.environments.registry import EnvironmentType
from gym.errors import BadRow, RolloutError, VerifierFailed, text_of
from gym.jsontypes import JsonObject
from gym.judges.base import Ask, Verdict
from gym.limits import Limits
from gym.results.result import RolloutTiming
from gym.reward import Reward
from gym.rollout import StopReason
from gym.task import Task
from gym.trajectory import Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeResult:
    """The end of an attempt. `error` is set where it failed, `ask` where judges have yet to score it."""

    stop_reason: StopReason
    reward: Reward | None
    error: RolloutError | None
    ask: Ask | None = None
    trajectory: Trajectory | None
    timing: RolloutTiming


@dataclass(slots=True, kw_only=True)
class Play:
    """The live state of one rollout, which a watcher may read at any time.

    Times are of `time.monotonic()`. `earlier_s` is what the attempt had run elsewhere before it was handed back here.
    """

    began: float = field(default_factory=time.monotonic)
    ready_at: float | None = None  # the environment was set up
    earlier_s: float = 0.0
    episode: Episode | None = None
    timing: RolloutTiming = field(default_factory=RolloutTiming)
    waits: CapacityWaits = field(default_factory=CapacityWaits)  # of its environment for its turn

    def close_timing(self) -> RolloutTiming:
        """Return the timing as of now."""
        self.timing.total_s = self.earlier_s + time.monotonic() - self.began
        if self.episode is not None:
            self.timing.model_s = self.episode.model_s
            self.timing.tool_s = self.episode.tool_s
        return self.timing


def task_of(
    data: JsonObject,
    kind: EnvironmentType,
    *,
    task_id: str,
    agent: str | None = None,
    sampling: Mapping[str, object] | None = None,
) -> Task:
    """Return the task of a row; `agent` and `sampling` are the batch's, which the row's own fields override."""
    return Task(
        task_id=task_id,
        environment=kind.name,
        agent=data.get("agent") or agent or kind.agent,
        params={**(sampling or {}), **data["responses_create_params"]},
        data=data,
    )


async def play(
    task: Task,
    session: EnvironmentSession,
    agents: Mapping[str, Agent],
    model: Model,
    *,
    policy: PolicyNow,
    limits: Limits,
    rollout_id: str,
    group_id: str,
    attempt: int = 1,
    state: Play,
) -> EpisodeResult:
    """Set the environment up, let the task's agent drive the episode, verify it, and close the environment.

    The session must be new. Its reward is final unless `ask` of the result is set. Raises BadRow where there is no
    such agent, else the RolloutError of the environment, the agent, the model or the verifier.
    """
    agent = agents.get(task.agent)
    if agent is None:
        raise BadRow(f"there is no agent {task.agent!r}; there are {', '.join(sorted(agents))}")
    timing = state.timing
    try:
        began = time.monotonic()
        listen_to_waits(state.waits)
        await session.setup()
        state.ready_at = time.monotonic()
        timing.environment_s = state.ready_at - began
        remaining_s = limits.rollout_timeout_s - (time.monotonic() - state.began)
        episode = state.episode = Episode(
            task=task,
            rollout_id=rollout_id,
            group_id=group_id,
            attempt=attempt,
            limits=limits,
            environment=session,
            model=model,
            policy=policy,
            deadline=asyncio.get_running_loop().time() + remaining_s,
            trajectory=Trajectory(params=task.params),
            started=time.monotonic() - state.earlier_s,
        )
        reason = await agent.run(episode)
        episode.trajectory.stop_reason = reason.value
        began = time.monotonic()
        found = await session.verify(episode.trajectory)
        timing.environment_s += time.monotonic() - began
    finally:
        await session.close()
    reward, ask = (None, found) if isinstance(found, Ask) else (found, None)
    return EpisodeResult(
        stop_reason=reason,
        reward=reward,
        error=None,
        ask=ask,
        trajectory=episode.trajectory,
        timing=state.close_timing(),
    )


def judged_reward(kind: EnvironmentType, ask: Ask, verdicts: Sequence[Verdict]) -> Reward:
    """Return the reward that an environment makes of its judges' verdicts, one for each question in order.

    Raises BadRow where the environment cannot be run here, VerifierFailed where its `judged` raises or gives no number,
    or the RolloutError that it raised.
    """
    if kind.cls is None:
        raise BadRow(f"{kind.name} cannot be run: {kind.error}")
    try:
        return Reward.of(kind.cls.judged(ask, verdicts))
    except RolloutError:
        raise
    except (Exception, SystemExit) as error:
        raise VerifierFailed(f"{kind.name}, judged: {text_of(error)}") from error
