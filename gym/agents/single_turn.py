"""The agent for questions with one answer: a single model call, no tools."""

from gym.agents.base import Episode
from gym.limits import stop_after_turn
from gym.rollout import StopReason


class SingleTurn:
    """Agent that asks once. No tools are offered, so no tool calls can come."""

    async def run(self, episode: Episode) -> StopReason:
        """Call the model once. The reason is `completed`, or the limit that cut the answer."""
        reply = await episode.call_model(tools=[])
        return stop_after_turn(finish=reply.facts.finish, tool_calls=0, turns=1, max_turns=1) or StopReason.COMPLETED
