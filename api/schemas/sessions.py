"""The bodies and the answers of environment sessions."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from gym.batch import Id
from gym.fields.bounded import IsNumber


class OpenSessionBody(BaseModel):
    """Which task, and how. `row` is a row of the environment; `responses_create_params` may be left out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    row: dict[str, Any]
    seed: Annotated[int | None, IsNumber] = None
    session_id: Id | None = Field(default=None, description="makes the call repeatable; left out, one is made")


class ToolArguments(BaseModel):
    """What a model would give the tool."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    arguments: dict[str, Any] = Field(default_factory=dict)


class ActionBody(BaseModel):
    """What to do, as the environment takes it: a text, a number, an object."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    action: Any


class VerifyBody(BaseModel):
    """What the policy said: a Responses API object, its output items, or the text of the last message."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    response: dict[str, Any] | list[dict[str, Any]] | str = ""


class SessionShown(BaseModel):
    """A session in the books."""

    session_id: str
    environment: str
    worker: str
    created_at: str
    expires_at: str


class SessionAnswer(SessionShown):
    """A session just opened: the first observation (of a tool environment the task's input), and the tools."""

    observation: Any
    tools: list[dict[str, Any]]


class ToolOutput(BaseModel):
    """What the model would read."""

    output: str
    failed: bool
    expires_at: str


class SessionStep(BaseModel):
    """What an action led to."""

    observation: Any
    reward: float
    done: bool
    truncated: bool
    info: dict[str, Any]
    expires_at: str


class SessionReward(BaseModel):
    """A finite reward and what it was made of."""

    reward: float
    reward_components: dict[str, float]
    expires_at: str


class SessionClosed(BaseModel):
    """`closed` is false where there was none."""

    session_id: str
    closed: bool
