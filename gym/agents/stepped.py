"""The agent that plays a stepped environment: observation, answer, action, … until it is done or a limit is reached.

Observations and refused actions become items of the trajectory beside the model's own, so the conversation is whole;
their tokens are part of later prompts and carry no loss. Each step's reward is kept in `trajectory.steps`.
"""

from __future__ import annotations

from collections.abc import Sequence

from gym.agents.base import Episode, tool_calls_of
from gym.environments.base import Step
from gym.environments.codec_calls import CodecCalls
from gym.environments.codecs import Act
from gym.environments.tools import BadArguments
from gym.jsontypes import JsonObject
from gym.limits import stop_after_turn
from gym.rollout import StopReason


class Stepped:
    """Agent that acts on the actions that the environment's codec finds in each answer."""

    async def run(self, episode: Episode) -> StopReason:
        """Play until the environment is done (`completed` or `truncated`), an answer has no action, or a limit holds.

        Limits are checked in the order of `gym.limits`; an answer with an action counts as one with a tool call. Other
        tools of the environment run before its actions.
        """
        first, codec = await episode.observe(), CodecCalls(episode.environment.codec)
        tools = [*episode.environment.tools, *codec.tools]
        acting = {str(tool.get("name")) for tool in codec.tools}
        episode.trajectory.items += codec.show(first, None)
        turns = 0
        while True:
            reply = await episode.call_model(tools=tools)
            turns += 1
            calls = [call for call in tool_calls_of(reply) if call.get("name") not in acting]
            acts = codec.acts([item for item in reply.items if item not in calls])
            if calls and not codec.tools:
                acts = []  # it called tools beside its actions, and acts once it has seen their outputs
            reason = stop_after_turn(
                finish=reply.facts.finish,
                tool_calls=len(calls) + len(acts),
                turns=turns,
                max_turns=episode.limits.max_turns,
            )
            if reason not in (None, StopReason.MAX_TURNS):
                return reason
            if calls:
                await episode.run_tools(calls)
            last = await self._act(episode, codec, acts, turn=turns - 1)
            if last is not None and last.done:
                return StopReason.TRUNCATED if last.truncated else StopReason.COMPLETED
            if reason is not None:
                return reason

    async def _act(self, episode: Episode, codec: CodecCalls, acts: Sequence[Act], *, turn: int) -> Step | None:
        """Take the actions in order until one ends the episode. Returns the last step, if any."""
        last: Step | None = None
        for act in acts:
            shown: list[JsonObject]
            if last is not None and last.done:
                shown = codec.refuse("the episode is over", act)
            elif act.fault is not None:
                shown = codec.refuse(act.fault, act)
            else:
                try:
                    last = await episode.step(act.action, turn=turn)
                    shown = codec.show(last.observation, act)
                except BadArguments as error:
                    shown = codec.refuse(str(error), act)
            episode.trajectory.items += shown
        return last
