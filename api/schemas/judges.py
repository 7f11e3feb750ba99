"""The bodies and answers of the calls on judges, as `api.schemas.batches` has those of the others."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class RejudgeBody(BaseModel):
    """Which results are judged again, all that asked a judge where it is left out, and by whom instead."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rollout_ids: Annotated[list[str] | None, Field(max_length=100_000)] = None
    judge: Annotated[str | None, Field(description="asked in place of whom the verifier asked")] = None


class Rejudging(BaseModel):
    """How many results are judged again, and how many were meant and cannot be: no judge had been asked."""

    rejudging: int
    skipped: int


class ParkedJudge(BaseModel):
    """A judge that failed so many rollouts in a row that it is left alone but for a probe now and then."""

    kind: Literal["judge"]
    name: str
    since: str
    failures: int
    error: str
    next_probe_at: str


class JudgeAnswer(BaseModel):
    """A judge. `version` is its configuration's; `waiting` and `asked` count rollouts, those with its workers apart.

    While it is `parked`, what waits is not sent to it.
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
    """The judges by name."""

    items: list[JudgeAnswer]
    judge_workers: int
