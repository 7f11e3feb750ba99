"""One episode without a farm: an environment, the tool loop and a model, as a worker puts them together."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from gym.agents.base import Episode, Model, PolicyNow
from gym.agents.tool_loop import ToolLoop
from gym.environments.registry import load_registry
from gym.environments.session import EnvironmentSession
from gym.environments.threads import EnvironmentThreads
from gym.errors import Invalid
from gym.jsontypes import JsonObject
from gym.limits import Limits
from gym.reward import Reward
from gym.rollout import StopReason
from gym.task import Task
from gym.trajectory import Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """An episode that is over, why it ended, and its reward. `tools` are those that the model was offered."""

    episode: Episode
    reason: StopReason
    reward: float
    tools: list[JsonObject]


async def play(
    row: JsonObject,
    *,
    model: Model,
    policy: PolicyNow,
    within_s: float = 20.0,
    rollout_id: str = "r",
    group_id: str = "g",
) -> Played:
    """Run the episode of a row that names its environment, and score it.

    Raises NotFound for an unknown environment, Invalid where its verifier asks a judge, else RolloutError as a rollout
    would fail.
    """
    environment, params = row["environment"], row["responses_create_params"]
    with EnvironmentThreads(1) as executor:
        session = EnvironmentSession(load_registry().get(environment), row, seed=0, executor=executor)
        try:
            await session.setup()
            episode = Episode(
                task=Task(task_id="t", environment=environment, agent="tool_loop", params=params, data=row),
                rollout_id=rollout_id,
                group_id=group_id,
                attempt=1,
                limits=Limits(),
                environment=session,
                model=model,
                policy=policy,
                deadline=asyncio.get_running_loop().time() + within_s,
                trajectory=Trajectory(params=params),
            )
            reason = await ToolLoop().run(episode)
            reward = await session.verify(episode.trajectory)
            if not isinstance(reward, Reward):
                raise Invalid(f"the verifier of {environment} asks a judge, and no judge is here", "environment")
        finally:
            await session.close()
    return Played(episode=episode, reason=reason, reward=reward.value, tools=session.tools)
