"""Request bodies of the API, and the responses that its OpenAPI document describes.

Bodies are validated with these models by hand, since they arrive in forms that FastAPI does not read (streams, gzip,
limits of their own). Responses are written as plain JSON; their models are documentation, which tests keep true.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from gym.batch import BatchSpec
from gym.errors import ErrorKind


class BatchBody(BatchSpec):
    """A batch with its rows, in NeMo Gym's row format; `GET /v1/environments` shows the fields of each environment."""

    rows: list[dict[str, Any]] = Field(default_factory=list)


class RequeueBody(BaseModel):
    """Rollouts to run again; without either field, all that failed or expired."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    error_kinds: list[ErrorKind] | None = None
    rollout_ids: Annotated[list[str] | None, Field(max_length=100_000)] = None


class Links(BaseModel):
    """URLs of a batch's calls."""

    self: str
    results: str
    rows: str
    seal: str


class BatchCreated(BaseModel):
    """Result of a submission; `submitted` counts rollouts."""

    batch_id: str
    run: str
    state: str
    submitted: int
    links: Links


class RowsAdded(BaseModel):
    """`accepted` and `repeated` count rows of this request, `submitted` all rollouts of the batch."""

    accepted: int
    repeated: int
    submitted: int


class LedgerAnswer(BaseModel):
    """`submitted` is the sum of the others at every moment."""

    submitted: int
    queued: int
    running: int
    judging: int
    succeeded: int
    failed: int
    cancelled: int
    expired: int


class ParkedReason(BaseModel):
    """A policy, environment or judge that keeps failing; `probe` is the one rollout that may try it."""

    kind: Literal["policy", "environment", "judge"]
    name: str
    since: str
    error: str
    next_probe_at: str


class ParkedAnswer(BaseModel):
    """Number of parked rollouts, of those queued and those judging, and why; parking uses up no attempts."""

    count: int
    reasons: list[ParkedReason]


class BatchAnswer(BaseModel):
    """A batch; `environments` holds means by environment, `null` if there is no rollout to average over."""

    batch_id: str
    run: str
    state: Literal["open", "running", "done", "cancelled", "expired", "unreadable"]
    sealed: bool
    created_at: str
    ended_at: str | None
    options: dict[str, Any]
    ledger: LedgerAnswer
    fenced: Annotated[int, Field(description="late or duplicate writes that changed nothing")]
    parked: ParkedAnswer
    environments: dict[str, dict[str, float | None]]
    trouble: Annotated[str | None, Field(description="for a batch that is `unreadable`: the reason")] = None


class BatchList(BaseModel):
    """Batches, newest first; `next_after` is null when no more follow. `environments` is empty in a list."""

    items: list[BatchAnswer]
    next_after: str | None


class Cancelled(BaseModel):
    """Number of rollouts that this call ended (`cancelled`), and of those that are still to be ended (`left`).

    A tombstone waits for rollouts that have not been submitted yet.
    """

    batch_id: str | None = None
    group_id: str | None = None
    rollout_id: str | None = None
    cancelled: int
    left: int = 0
    tombstone: bool
    state: str | None = None
    ledger: LedgerAnswer | None = None


class Requeued(BaseModel):
    """Number of rollouts that run again."""

    requeued: int
