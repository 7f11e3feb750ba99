"""Agents by name: the farm's own, and those outside that the settings name."""

from collections.abc import Mapping

from gym.agents.base import Agent
from gym.agents.outside.base import AgentProxy, OutsideAgent
from gym.agents.outside.command import CommandAgent
from gym.agents.outside.remote import RemoteAgent
from gym.agents.outside.sandboxed import SandboxedAgent
from gym.agents.settings import AgentSettings, RemoteSettings
from gym.agents.single_turn import SingleTurn
from gym.agents.stepped import Stepped
from gym.agents.tool_loop import ToolLoop
from gym.sandbox.settings import SandboxSettings

AGENTS: Mapping[str, Agent] = {"tool_loop": ToolLoop(), "single_turn": SingleTurn(), "stepped": Stepped()}


def outside_agents(
    settings: Mapping[str, AgentSettings], proxy: AgentProxy, sandbox: SandboxSettings
) -> dict[str, OutsideAgent]:
    """Build the agents that the settings name."""
    agents: dict[str, OutsideAgent] = {}
    for name, each in settings.items():
        if isinstance(each, RemoteSettings):
            agents[name] = RemoteAgent(name, proxy, each)
        elif each.sandbox:
            agents[name] = SandboxedAgent(name, proxy, each, sandbox)
        else:
            agents[name] = CommandAgent(name, proxy, each)
    return agents
