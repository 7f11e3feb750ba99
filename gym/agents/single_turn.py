"""The agent for questions with one answer: a single model call, no tools."""

from gym.agents.base import Episode
from gym.limits import stop_after_turn
from gym.rollout import StopReason


class SingleTurn:
    """Asks once. Tool calls cannot come, since no tools are offered."""

    async def run(self, episode: Episode) -> StopReason:
        """The reason is `completed`, or what cut the answer short."""
        reply = await episode.call_model(tools=[])
        return stop_after_turn(finish=reply.facts.finish, tool_calls=0, turns=1, max_turns=1) or StopReason.COMPLETED
