"""Bodies of leasing and acknowledging results."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from api.schemas.results import ResultAnswer
from gym.batch import Id
from gym.fields.bounded import IsNumber
from gym.limits import RequestSeconds
from gym.state.ledger.feed import LeaseUnit


class LeaseBody(BaseModel):
    """Request for leased results. `max` counts units; a group is handed out whole, once all its rollouts have ended."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    consumer: Annotated[Id, Field(description="name of the consumer that acknowledges")]
    max: Annotated[int, Field(ge=1, le=5000), IsNumber] = 64
    ttl_s: RequestSeconds = 300.0
    unit: LeaseUnit = LeaseUnit.ROLLOUT
    lease_id: Annotated[Id | None, Field(description="makes the call idempotent")] = None
    position: Annotated[
        str | None,
        Field(
            description="`position` of the previous response, `0-0` at first; 409 "
            "`log_went_back` if results since then are lost"
        ),
    ] = None


class AckBody(BaseModel):
    """Results to acknowledge: a whole lease, or rollouts by name (of a group all, or none)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    consumer: Id
    lease_id: Id | None = None
    rollout_ids: Annotated[list[str] | None, Field(max_length=20_000)] = None


class LeaseAnswer(BaseModel):
    """Leased results; `done` is true when the batch has ended and this consumer has acknowledged all of it.

    `expires_at` is null if nothing is leased; `position`, for the next call, is present if one was given.
    """

    items: list[ResultAnswer]
    lease_id: str
    expires_at: str | None
    done: bool
    position: str | None = None


class Acknowledged(BaseModel):
    """Number of newly acknowledged results."""

    acknowledged: int
