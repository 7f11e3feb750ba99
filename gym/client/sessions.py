"""Environment sessions for a trainer with its own agent loop: the environment alone, without model calls by the farm.

    async with await farm.open_session("stateful_counter", {"initial_count": 3, "expected_count": 5}) as session:
        answer = await session.call_tool("increment_counter", {"count": 2})
        reward = await session.verify("The count is 5.")

Every call carries an idempotency key, so that a call repeated after a lost response is executed once. Calls of one
session run one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import TracebackType
from typing import Any
from urllib.parse import quote

from gym.client.exchange import Flow, Request
from gym.client.transport import AsyncTransport, SyncTransport
from gym.ids import new_id
from gym.jsontypes import JsonObject
from gym.plain import exact_json
from gym.reward import Reward


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolAnswer:
    """Tool output as a model would read it; the output of a failed call too."""

    output: str
    failed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StepAnswer:
    """Result of an action."""

    observation: Any
    reward: float
    done: bool
    truncated: bool
    info: JsonObject = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A session just opened: its first observation, and its tools."""

    session_id: str
    environment: str
    observation: Any
    tools: tuple[JsonObject, ...]
    expires_at: str


def open_session(
    environment: str, row: JsonObject, *, seed: int | None = None, session_id: str | None = None
) -> Flow[Opened]:
    """Set up an environment for a row, whose `responses_create_params` may be left out.

    Raises NotFound, Invalid for an invalid row, or Overloaded if the key has reached its limit of sessions.
    """
    body: JsonObject = {"row": row, "session_id": session_id or new_id("session")}
    if seed is not None:
        body["seed"] = seed
    response = yield Request(
        method="POST", path=f"/v1/environments/{quote(environment, safe='')}/sessions", body=[exact_json.dumps(body)]
    )
    data = response.json()
    return Opened(
        session_id=data["session_id"],
        environment=data["environment"],
        observation=data["observation"],
        tools=tuple(data["tools"]),
        expires_at=data["expires_at"],
    )


def call_tool(session_id: str, tool: str, arguments: JsonObject | None = None) -> Flow[ToolAnswer]:
    """Call a tool as a model would. Raises NotFound if the session has ended."""
    data = yield from _ask(session_id, f"tools/{quote(tool, safe='')}", {"arguments": arguments or {}})
    return ToolAnswer(output=data["output"], failed=data["failed"])


def step(session_id: str, action: Any) -> Flow[StepAnswer]:
    """Apply an action to a stepped environment. Raises Invalid if the action is not valid."""
    data = yield from _ask(session_id, "step", {"action": action})
    return StepAnswer(
        observation=data["observation"],
        reward=data["reward"],
        done=data["done"],
        truncated=data.get("truncated", False),
        info=data["info"],
    )


def verify(session_id: str, response: JsonObject | list[JsonObject] | str = "") -> Flow[Reward]:
    """Score the policy's output: the last message's text, output items, or a Responses API object."""
    data = yield from _ask(session_id, "verify", {"response": response})
    return Reward(data["reward"], data["reward_components"])


def close_session(session_id: str) -> Flow[bool]:
    """Close a session. Return whether there was one."""
    response = yield Request(method="DELETE", path=f"/v1/sessions/{quote(session_id, safe='')}")
    return bool(response.json()["closed"])


def _ask(session_id: str, call: str, body: JsonObject) -> Flow[JsonObject]:
    path = f"/v1/sessions/{quote(session_id, safe='')}/{call}"
    response = yield Request(method="POST", path=path, body=[exact_json.dumps(body)], key=new_id("call"))
    data: JsonObject = response.json()
    return data


class AsyncSession:
    """A session of an AsyncFarm; `async with` closes it."""

    def __init__(self, transport: AsyncTransport, opened: Opened) -> None:
        self._transport = transport
        self.opened = opened
        self.session_id = opened.session_id

    async def call_tool(self, tool: str, arguments: JsonObject | None = None) -> ToolAnswer:
        """Call a tool as a model would."""
        return await self._transport.run(call_tool(self.session_id, tool, arguments))

    async def step(self, action: Any) -> StepAnswer:
        """Apply an action to a stepped environment."""
        return await self._transport.run(step(self.session_id, action))

    async def verify(self, response: JsonObject | list[JsonObject] | str = "") -> Reward:
        """Score the policy's output."""
        return await self._transport.run(verify(self.session_id, response))

    async def close(self) -> bool:
        """Close the session. Idempotent."""
        return await self._transport.run(close_session(self.session_id))

    async def __aenter__(self) -> AsyncSession:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class Session:
    """A session of a Farm; `with` closes it."""

    def __init__(self, transport: SyncTransport, opened: Opened) -> None:
        self._transport = transport
        self.opened = opened
        self.session_id = opened.session_id

    def call_tool(self, tool: str, arguments: JsonObject | None = None) -> ToolAnswer:
        """Call a tool as a model would."""
        return self._transport.run(call_tool(self.session_id, tool, arguments))

    def step(self, action: Any) -> StepAnswer:
        """Apply an action to a stepped environment."""
        return self._transport.run(step(self.session_id, action))

    def verify(self, response: JsonObject | list[JsonObject] | str = "") -> Reward:
        """Score the policy's output."""
        return self._transport.run(verify(self.session_id, response))

    def close(self) -> bool:
        """Close the session. Idempotent."""
        return self._transport.run(close_session(self.session_id))

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
