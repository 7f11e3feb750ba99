"""The bodies of leasing and acknowledging results."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from api.schemas.results import ResultAnswer
from gym.batch import Id
from gym.fields.bounded import IsNumber
from gym.limits import RequestSeconds
from gym.state.ledger.feed import LeaseUnit


class LeaseBody(BaseModel):
    """Who wants how much. `max` counts units; a group is handed out whole, when all of its rollouts have ended."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    consumer: Annotated[Id, Field(description="whose acknowledgements these are")]
    max: Annotated[int, Field(ge=1, le=5000), IsNumber] = 64
    ttl_s: RequestSeconds = 300.0
    unit: LeaseUnit = LeaseUnit.ROLLOUT
    lease_id: Annotated[Id | None, Field(description="makes the call repeatable")] = None
    position: Annotated[
        str | None, Field(description="of the answer before, `0-0` at first; 409 `log_went_back` where it is lost")
    ] = None


class AckBody(BaseModel):
    """What has been used up: all of a lease, or rollouts by name (of a group all, or none)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    consumer: Id
    lease_id: Id | None = None
    rollout_ids: Annotated[list[str] | None, Field(max_length=20_000)] = None


class LeaseAnswer(BaseModel):
    """Leased results; `done` is true when the batch has ended and this consumer has acknowledged all of it.

    `expires_at` is null where nothing is leased; `position`, for the next call, is there where one was given.
    """

    items: list[ResultAnswer]
    lease_id: str
    expires_at: str | None
    done: bool
    position: str | None = None


class Acknowledged(BaseModel):
    """How many results were acknowledged that were not before."""

    acknowledged: int
