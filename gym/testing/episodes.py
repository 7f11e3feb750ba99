"""One episode without a farm: an environment, its agent and a model, combined as a worker does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gym.agents.base import Episode, Model, PolicyLookup
from gym.agents.registry import AGENTS
from gym.environments.base import Environment
from gym.environments.hosting.session import EnvironmentSession
from gym.environments.hosting.threads import EnvironmentThreads
from gym.environments.registry import environment_type, load_registry
from gym.episode import Play, task_of
from gym.episode import play as play_task
from gym.errors import Invalid
from gym.jsontypes import JsonObject
from gym.limits import Limits
from gym.model_client.routing.served_model import ServedModel, inline_model
from gym.policy import PolicySpec
from gym.rollout import StopReason
from gym.trajectory import Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayedEpisode:
    """A finished episode: the reason of its end, and its reward. `tools` are those offered to the model."""

    episode: Episode
    reason: StopReason
    reward: float
    components: dict[str, float]
    tools: list[JsonObject]

    @property
    def trajectory(self) -> Trajectory:
        """Recorded trajectory."""
        return self.episode.trajectory


def no_policy() -> ServedModel:
    """Policy for models that call no server, such as `gym.testing.answers.Answers`."""
    return inline_model(PolicySpec(base_urls=["http://127.0.0.1:9/v1"], model="none"))


async def play(
    row: JsonObject,
    *,
    model: Model,
    environment: type[Environment[Any]] | None = None,
    policy: PolicyLookup = no_policy,
    limits: Limits | None = None,
    within_s: float = 20.0,
    rollout_id: str = "r",
    group_id: str = "g",
    seed: int = 0,
) -> PlayedEpisode:
    """Run the episode of a row, in the given environment or the one that the row names, and score it.

    Raises NotFound for an unknown environment, Invalid if its verifier asks a judge, otherwise RolloutError as a
    rollout would fail.
    """
    kind = environment_type(environment) if environment is not None else load_registry().get(row["environment"])
    chosen = (limits or Limits()).model_copy(update={"rollout_timeout_s": within_s})
    state = Play()
    with EnvironmentThreads(1) as executor:
        session = EnvironmentSession(kind, row, seed=seed, executor=executor)
        finished = await play_task(
            task_of(row, kind, task_id="t"),
            session,
            AGENTS,
            model,
            policy=policy,
            limits=chosen,
            rollout_id=rollout_id,
            group_id=group_id,
            state=state,
        )
    if finished.reward is None or state.episode is None:
        raise Invalid("no_judge", f"the verifier of {kind.name} asks a judge, and there is no judge in this test")
    return PlayedEpisode(
        episode=state.episode,
        reason=finished.stop_reason,
        reward=finished.reward.value,
        components=finished.reward.components,
        tools=session.tools,
    )
