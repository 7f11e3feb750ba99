"""Schemas of answers that hold results: one rollout, a page, the capture of an outside agent."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from gym.errors import ErrorKind
from gym.ids import ID_CHARS, ID_PATTERN
from gym.state.ledger.ended_batches import DropReason

# maximum characters of path parameters; group and rollout ids end in a row and a sample number
_IDS = {"batch_id": ID_CHARS, "session_id": ID_CHARS, "name": ID_CHARS, "group_id": 160, "rollout_id": 160}


class ResultError(BaseModel):
    """Cause of a failure, with the failed attempts."""

    kind: ErrorKind
    stage: str
    message: str
    retryable: bool
    attempts: list[dict[str, Any]]


class TrajectoryDropped(BaseModel):
    """Mark of a trajectory that was dropped: `segments` and `response` are null."""

    reason: DropReason
    at: str


class RecordedOutcome(BaseModel):
    """Recorded outcome of a rollout whose result cannot be read; the ledger counts it so until it is queued again."""

    outcome: str | None
    reward: float | None
    error: dict[str, Any] | None


class ResultAnswer(BaseModel):
    """Result of a rollout. `segments` come with `view=training`, the conversation with `view=full`.

    If the stored result cannot be read, `error.kind` is `result_unreadable`, and `reward`, `trajectory`, `segments`
    and `response` are null.
    """

    rollout_id: str
    batch_id: str
    run: str
    group_id: str
    task_id: str
    sample_index: int
    attempt: int
    environment: str
    outcome: Literal["succeeded", "failed", "cancelled", "expired"]
    stop_reason: str
    error: ResultError | None
    reward: float | None
    reward_components: dict[str, float]
    judge: Annotated[str | None, Field(description="the judge that the verifier asked")] = None
    verdicts: Annotated[
        list[dict[str, Any]],
        Field(
            description="verdicts of every round of judging, with name and version of the judge; the last round counts"
        ),
    ] = []
    policy_version: dict[str, int] | None
    usage: dict[str, int]
    model_calls: int
    tool_calls: int
    timing: dict[str, float]
    worker: str | None = None
    judged_by: Annotated[str | None, Field(description="the judge worker that recorded the last verdict")] = None
    finished_at: str
    state: Annotated[str | None, Field(description="in `GET /v1/rollouts/{id}`: the outcome")] = None
    responses_create_params: dict[str, Any] | None = None
    response: dict[str, Any] | None = None
    calls: list[dict[str, Any]] | None = None
    segments: list[dict[str, Any]] | None = None
    steps: Annotated[
        list[dict[str, Any]] | None,
        Field(description="of a stepped environment, with `segments`: turn, action, reward, done, truncated of each"),
    ] = None
    trajectory_dropped: TrajectoryDropped | None = None
    recorded: Annotated[RecordedOutcome | None, Field(description="of one that cannot be read")] = None
    trajectory: Annotated[None, Field(description="null in one that cannot be read; no other has it")] = None


class CapturedRollout(BaseModel):
    """Calls of an outside agent, captured by the model proxy. Neither an outcome nor a reward is known.

    `calls` and the conversation come with `view=full`, `segments` also with `training`. `request_ranges` of a call are
    the items of its request, as [start, end) of the input followed by the output. A failed call has an `error`, and its
    `request` holds the items that no answered call contains.
    """

    rollout_id: str
    state: Literal["captured"]
    outcome: None
    stop_reason: str | None
    reward: None
    policy_version: dict[str, int] | None
    usage: dict[str, int]
    model_calls: int
    failed_calls: int
    tool_calls: int
    responses_create_params: dict[str, Any] | None = None
    response: dict[str, Any] | None = None
    calls: list[dict[str, Any]] | None = None
    segments: list[dict[str, Any]] | None = None


class UnfinishedRollout(BaseModel):
    """A rollout that has not ended; `attempts` are those that failed.

    `captured` is set while it runs: the model calls of an outside agent in this attempt, null for other agents.
    """

    rollout_id: str
    batch_id: str
    run: str
    group_id: str
    task_id: str
    sample_index: int
    environment: str
    state: Literal["queued", "running", "judging"]
    attempt: int
    outcome: None
    worker: str | None
    attempts: list[dict[str, Any]]
    captured: CapturedRollout | None = None


class ResultPage(BaseModel):
    """A page of the completion log; `done` is true when nothing will follow."""

    items: list[ResultAnswer]
    next_after: str
    done: bool


def _describe_ids(document: dict[str, Any]) -> None:
    """Add the pattern of ids to path parameters; the routes check it themselves, since another id is a 404."""
    for calls in document["paths"].values():
        for call in calls.values():
            for parameter in call.get("parameters", ()):
                most = _IDS.get(parameter["name"]) if parameter["in"] == "path" else None
                if most is not None:
                    parameter["schema"] |= {"pattern": ID_PATTERN, "maxLength": most}
