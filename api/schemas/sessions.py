"""Bodies and responses of environment sessions."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from gym.batch import Id
from gym.fields.bounded import IsNumber


class OpenSessionBody(BaseModel):
    """Session to open. `row` is a row of the environment; `responses_create_params` may be left out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    row: dict[str, Any]
    seed: Annotated[int | None, IsNumber] = None
    session_id: Id | None = Field(default=None, description="makes the call idempotent; generated if left out")


class ToolArguments(BaseModel):
    """Arguments of the tool, as a model would give them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    arguments: dict[str, Any] = Field(default_factory=dict)


class ActionBody(BaseModel):
    """Action in the environment's own form: a text, a number, an object."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    action: Any


class VerifyBody(BaseModel):
    """Output of the policy: a Responses API object, its output items, or the text of the last message."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    response: dict[str, Any] | list[dict[str, Any]] | str = ""


class SessionShown(BaseModel):
    """An open session."""

    session_id: str
    environment: str
    worker: str
    created_at: str
    expires_at: str


class SessionAnswer(SessionShown):
    """A session just opened: the first observation (for a tool environment the task's input), and the tools."""

    observation: Any
    tools: list[dict[str, Any]]


class ToolOutput(BaseModel):
    """Tool output as the model would read it."""

    output: str
    failed: bool
    expires_at: str


class SessionStep(BaseModel):
    """Result of an action."""

    observation: Any
    reward: float
    done: bool
    truncated: bool
    info: dict[str, Any]
    expires_at: str


class SessionReward(BaseModel):
    """A finite reward and its components."""

    reward: float
    reward_components: dict[str, float]
    expires_at: str


class SessionClosed(BaseModel):
    """Result of closing; `closed` is false if there was no such session."""

    session_id: str
    closed: bool
