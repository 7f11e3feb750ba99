"""The agent for most tasks: model, tools, model, … until the model asks for no tool, or a limit is reached."""

from gym.agents.base import Episode, tool_calls_of
from gym.limits import stop_after_turn
from gym.rollout import StopReason


class ToolLoop:
    """Agent that runs the calls of one turn side by side and shows the model their outputs."""

    async def run(self, episode: Episode) -> StopReason:
        """Loop until a limit or the model ends it; `gym.limits` has the order of the limits."""
        tools = episode.environment.tools
        turns = 0
        while True:
            reply = await episode.call_model(tools=tools)
            turns += 1
            calls = tool_calls_of(reply)
            reason = stop_after_turn(
                finish=reply.facts.finish, tool_calls=len(calls), turns=turns, max_turns=episode.limits.max_turns
            )
            if reason not in (None, StopReason.MAX_TURNS):
                return reason
            await episode.run_tools(calls)
            if reason is not None:
                return reason
