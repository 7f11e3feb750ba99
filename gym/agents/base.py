"""The interface of agents, and the episode that an agent drives.

An agent decides when to call the model and which tools to run; the episode records. Limits are checked in the order of
`gym.limits`; clocks and cancellation interrupt from outside.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

from gym.environments.base import Step
from gym.environments.hosting.session import EnvironmentSession
from gym.jsontypes import JsonObject
from gym.limits import Limits
from gym.model_client.client import ModelReply, ModelRequest
from gym.model_client.routing.served_model import ServedModel
from gym.rollout import StopReason
from gym.task import Task
from gym.trajectory import CallFacts, ModelCall, ToolCall, Trajectory, TurnTokens

Result = TypeVar("Result")


class Model(Protocol):
    """Model of an episode: `gym.model_client.client.PolicyClient`, or a fake."""

    async def respond(self, request: ModelRequest) -> ModelReply:
        """Answer a request. Raises ModelUnreachable or ModelRejected."""


class PolicyLookup(Protocol):
    """Lookup of the policy's current record."""

    def __call__(self) -> ServedModel:
        """Return the record. Raises ModelUnreachable if the policy has been deleted."""


@dataclass(slots=True, kw_only=True)
class Episode:
    """The live run inside a rollout."""

    task: Task
    rollout_id: str
    group_id: str
    attempt: int
    limits: Limits
    environment: EnvironmentSession
    model: Model
    policy: PolicyLookup
    deadline: float  # loop.time()
    trajectory: Trajectory
    input_items: list[JsonObject] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    last_activity: float = field(default_factory=time.monotonic)
    last_reply: float | None = None  # when the model last answered, time.monotonic()
    model_s: float = 0.0
    tool_s: float = 0.0
    tools: list[list[JsonObject]] = field(default_factory=list)  # that each model call was offered
    last_tools: list[JsonObject] | None = None
    last_tokens: TurnTokens | None = None

    def __post_init__(self) -> None:
        items = self.task.params["input"]
        self.input_items = [{"role": "user", "content": items}] if isinstance(items, str) else list(items)

    def touch(self) -> None:
        """Record activity, which restarts the stall timeout."""
        self.last_activity = time.monotonic()

    def request(self, items: list[JsonObject], tools: list[JsonObject]) -> JsonObject:
        """Return the Responses request that follows these output items."""
        params: JsonObject = {**self.task.params, "input": self.input_items + items}
        if tools:
            params["tools"] = tools
        else:
            for name in ("tools", "tool_choice", "parallel_tool_calls"):
                params.pop(name, None)
        return params

    async def call_model(self, *, tools: list[JsonObject]) -> ModelReply:
        """Call the model on the whole conversation so far and record its answer."""
        params = self.request(self.trajectory.items, tools)
        turn = len(self.trajectory.calls)
        policy = self.policy()
        self.touch()
        began = time.monotonic()
        try:
            reply = await self.model.respond(
                ModelRequest(
                    policy=policy,
                    params=params,
                    sticky_key=self.group_id,
                    deadline=self.deadline,
                    rollout_id=self.rollout_id,
                    attempt=self.attempt,
                    turn=turn,
                    on_held=self.touch,
                    prefix=self.last_tokens if tools == self.last_tools else None,
                )
            )
        finally:
            self.model_s += time.monotonic() - began
        self.touch()
        self.tools.append(tools)
        facts = reply.facts
        if facts.started_s is not None:  # replayed: its times are those of the first attempt
            self.model_s += facts.duration_s
        else:
            facts = replace(facts, started_s=began - self.started)
            self.last_reply = self.last_activity
        self._record(reply, facts, turn, len(params["input"]))
        # an answer without items adds nothing to the next request, so the conversation cannot continue
        self.last_tools, self.last_tokens = tools, reply.tokens if reply.items else None
        return reply

    def _record(self, reply: ModelReply, facts: CallFacts, turn: int, request_items: int) -> None:
        trajectory = self.trajectory
        trajectory.items += reply.items
        trajectory.usage += facts.usage
        trajectory.calls.append(
            ModelCall(
                turn=turn,
                facts=facts,
                request_items=request_items,
                reply_items=len(reply.items),
                has_tokens=reply.tokens is not None,
            )
        )
        if facts.finish == "context_overflow":
            return
        if reply.tokens is None:
            trajectory.tokens_complete = False
        else:
            trajectory.segments.add_turn(reply.tokens, facts.version_after)

    async def run_tools(self, calls: list[JsonObject]) -> None:
        """Run the calls of one turn side by side; their outputs are recorded in the order of the calls."""
        self.touch()
        began = time.monotonic()
        try:
            if len(calls) == 1:
                outcomes = [await self._run_tool(calls[0])]
            else:
                outcomes = await asyncio.gather(*(self._run_tool(call) for call in calls))
        finally:
            self.tool_s += time.monotonic() - began
        for call, outcome in zip(calls, outcomes, strict=True):
            self.trajectory.tool_calls.append(outcome)
            self.trajectory.items.append(
                {"type": "function_call_output", "call_id": call["call_id"], "output": outcome.output}
            )
        self.touch()

    async def observe(self) -> Any:
        """Return the first observation of a stepped environment. Raises EnvironmentFailed."""
        return await self._timed(self.environment.observe())

    async def step(self, action: Any, *, turn: int) -> Step:
        """Take the model's action of this turn in a stepped environment, and record the result.

        Raises BadArguments for an action that is not legal, EnvironmentFailed.
        """
        step = await self._timed(self.environment.step(action))
        self.trajectory.steps.append(step.taken(action, turn=turn))
        return step

    async def _timed(self, work: Awaitable[Result]) -> Result:
        self.touch()
        began = time.monotonic()
        try:
            return await work
        finally:
            self.tool_s += time.monotonic() - began
            self.touch()

    async def _run_tool(self, call: JsonObject) -> ToolCall:
        arguments: Any = call.get("arguments")
        return await self.environment.call_tool(
            str(call.get("name", "")), arguments if isinstance(arguments, str) else "{}"
        )


def tool_calls_of(reply: ModelReply) -> list[JsonObject]:
    """Return the function calls of an answer, in order."""
    return [item for item in reply.items if item.get("type") == "function_call"]


class Agent(Protocol):
    """Drives an episode to its end."""

    async def run(self, episode: Episode) -> StopReason:
        """Drive the episode and return why it ended. Raises RolloutError if it cannot continue."""
