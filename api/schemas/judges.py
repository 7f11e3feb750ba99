"""Bodies and responses of the calls on judges."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class RejudgeBody(BaseModel):
    """Results to judge again (by default all that were judged), and optionally another judge."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rollout_ids: Annotated[list[str] | None, Field(max_length=100_000)] = None
    judge: Annotated[str | None, Field(description="judge to ask instead of the verifier's")] = None


class Rejudging(BaseModel):
    """Number of results to be judged again, and of selected results that cannot be, since no judge had been asked."""

    rejudging: int
    skipped: int


class ParkedJudge(BaseModel):
    """A judge whose circuit breaker is open after consecutive failures; it gets only a probe now and then."""

    kind: Literal["judge"]
    name: str
    since: str
    failures: int
    error: str
    next_probe_at: str


class JudgeAnswer(BaseModel):
    """A judge.

    `version` is that of its configuration; `waiting` and `asked` count rollouts, the latter those at its workers.

    While it is `parked`, waiting rollouts are not sent to it.
    """

    judge: str
    configured: bool
    kind: str | None
    model: str | None
    version: str | None
    waiting: int
    asked: int
    parked: ParkedJudge | None
    replicas: list[dict[str, Any]]
    workers: list[dict[str, Any]]


class JudgeList(BaseModel):
    """Judges by name."""

    items: list[JudgeAnswer]
    judge_workers: int
