"""The agents by name."""

from collections.abc import Mapping

from gym.agents.base import Agent
from gym.agents.single_turn import SingleTurn
from gym.agents.stepped import Stepped
from gym.agents.tool_loop import ToolLoop

AGENTS: Mapping[str, Agent] = {"tool_loop": ToolLoop(), "single_turn": SingleTurn(), "stepped": Stepped()}
