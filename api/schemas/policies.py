"""Bodies and responses of the calls on policies."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from gym.fields.bounded import IsNumber
from gym.policy import PolicySpec, Version


class PolicyAnswer(PolicySpec):
    """A registered policy; its key is shown as asterisks."""

    name: str
    revision: int
    paused: Literal["hold", "drain"] | None


class PauseBody(BaseModel):
    """Mode of a pause: `hold` holds new model calls; `drain` also waits, up to `timeout_s`, for those in flight."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mode: Literal["hold", "drain"] = "hold"
    timeout_s: Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False), IsNumber] = 60.0


class ResumeBody(BaseModel):
    """The version of the weights that are served from now on, if the trainer counts them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Annotated[Version | None, IsNumber] = None


class PauseAnswer(BaseModel):
    """Calls over all processes; `obeyed` is true once each process has seen the pause."""

    policy: str
    mode: str
    in_flight: int
    held: int
    obeyed: bool
