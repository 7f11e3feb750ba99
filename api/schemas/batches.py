"""The bodies that the API takes, and the answers that its OpenAPI document describes.

Bodies are checked with these models by hand, since they arrive in forms that FastAPI does not read (streams, gzip,
limits of their own). Answers are written as plain JSON; their models are documentation, kept true by tests.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from gym.batch import BatchSpec
from gym.errors import ErrorKind


class BatchBody(BatchSpec):
    """A batch with its rows. A row is NeMo Gym's row; `GET /v1/environments` shows each environment's."""

    rows: list[dict[str, Any]] = Field(default_factory=list)


class RequeueBody(BaseModel):
    """Which rollouts run again; without either field, all that failed or expired."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    error_kinds: list[ErrorKind] | None = None
    rollout_ids: Annotated[list[str] | None, Field(max_length=100_000)] = None


class Links(BaseModel):
    """Where a batch's calls are."""

    self: str
    results: str
    rows: str
    seal: str


class BatchCreated(BaseModel):
    """What came of a submission; `submitted` counts rollouts."""

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
    """A policy, environment or judge that keeps failing; the probe is one rollout that is let through to try it."""

    kind: Literal["policy", "environment", "judge"]
    name: str
    since: str
    error: str
    next_probe_at: str


class ParkedAnswer(BaseModel):
    """How many rollouts are parked, of those queued and those judging, and why; no attempts are used up."""

    count: int
    reasons: list[ParkedReason]


class BatchAnswer(BaseModel):
    """A batch as it stands; `environments` holds means by environment, `null` where there is nothing to divide by."""

    batch_id: str
    run: str
    state: Literal["open", "running", "done", "cancelled", "expired", "unreadable"]
    sealed: bool
    created_at: str
    ended_at: str | None
    options: dict[str, Any]
    ledger: LedgerAnswer
    fenced: Annotated[int, Field(description="late or duplicate writers that changed nothing")]
    parked: ParkedAnswer
    environments: dict[str, dict[str, float | None]]
    trouble: Annotated[str | None, Field(description="of one that is `unreadable`: why")] = None


class BatchList(BaseModel):
    """Batches, newest first; `next_after` is null when nothing follows. These leave `environments` empty."""

    items: list[BatchAnswer]
    next_after: str | None


class Cancelled(BaseModel):
    """`cancelled` counts rollouts that this call ended, `left` those that are still to be ended.

    A tombstone waits for what has not been submitted yet.
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
    """How many rollouts run again."""

    requeued: int
