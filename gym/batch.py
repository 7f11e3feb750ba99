"""Options of a submitted batch, validated on entry.

`BatchSpec` is stored with the batch and never changes afterwards, so workers may cache it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from gym.fields.bounded import Free, IsBoolean, IsNumber
from gym.ids import ID_CHARS, ID_PATTERN
from gym.limits import Limits
from gym.policy import PolicySpec
from gym.task import MAX_SAMPLES

Id = Annotated[str, StringConstraints(pattern=ID_PATTERN, max_length=ID_CHARS)]
Name = Annotated[str, StringConstraints(max_length=256)]


class EarlyStop(BaseModel):
    """Cancel a group's stragglers once so many of its rollouts succeeded with a reward."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_usable: Annotated[int, Field(ge=1, le=MAX_SAMPLES), IsNumber]


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
    environment: Name | None = Field(default=None, description="for rows that name none")
    agent: Name | None = Field(default=None, description="for rows that name none; left out, the environment's own")
    num_samples: Annotated[int, Field(ge=1, le=MAX_SAMPLES), IsNumber] = 1
    priority: Annotated[int, Field(ge=0, le=9, description="9 first"), IsNumber] = 5
    weight: Annotated[
        float, Field(gt=0, le=1000, allow_inf_nan=False, description="the run's share among equals"), IsNumber
    ] = 1.0
    limits: Limits = Limits()
    sampling: Free = Field(
        default_factory=dict, description="defaults for fields that a row leaves out; at most 64 KiB as JSON"
    )
    early_stop: EarlyStop | None = None
    staleness: Literal[None] = Field(default=None, description="reserved")
    metadata: Free = Field(default_factory=dict, description="yours, shown with the batch; at most 64 KiB as JSON")
    sealed: Annotated[bool, IsBoolean] = True
