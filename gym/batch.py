"""What one submission asks for: the options of a batch, checked where they enter.

`BatchSpec` is stored with the batch and never changes afterwards, so workers may cache it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from gym.ids import ID_PATTERN
from gym.limits import Limits
from gym.policy import PolicySpec
from gym.task import MAX_SAMPLES

Id = Annotated[str, StringConstraints(pattern=ID_PATTERN)]


class EarlyStop(BaseModel):
    """Cancel a group's stragglers once so many of its rollouts succeeded with a reward."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_usable: Annotated[int, Field(ge=1, le=MAX_SAMPLES)]


class BatchSpec(BaseModel):
    """The options of a batch, without its rows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    batch_id: Id | None = Field(default=None, description="makes the call repeatable; left out, one is made")
    run: Id | None = Field(
        default=None, description="the tenant; left out, the batch is one of its own and its id is the run's"
    )
    policy: Id | PolicySpec | None = Field(
        default=None,
        description="a registered name or an inline policy; left out, the setting `default_policy`",
    )
    environment: str | None = Field(default=None, description="for rows that name none")
    agent: str | None = Field(default=None, description="for rows that name none; left out, the environment's own")
    num_samples: Annotated[int, Field(ge=1, le=MAX_SAMPLES)] = 1
    priority: Annotated[int, Field(ge=0, le=9, description="9 first")] = 5
    weight: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False, description="the run's share among equals")] = (
        1.0
    )
    limits: Limits = Limits()
    sampling: dict[str, Any] = Field(default_factory=dict, description="defaults for fields that a row leaves out")
    early_stop: EarlyStop | None = None
    staleness: Literal[None] = Field(default=None, description="reserved")
    metadata: dict[str, Any] = Field(default_factory=dict)
    sealed: bool = True
