"""Answers that hold results: one rollout, a page, what the proxy captured."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from gym.errors import ErrorKind
from gym.ids import ID_CHARS, ID_PATTERN
from gym.state.ledger.ended_batches import DropReason

# parameters of paths, with their most characters; those of a rollout end in its row and sample
_IDS = {"batch_id": ID_CHARS, "session_id": ID_CHARS, "name": ID_CHARS, "group_id": 160, "rollout_id": 160}


class ResultError(BaseModel):
    """Why a rollout failed."""

    kind: ErrorKind
    stage: str
    message: str
    retryable: bool
    attempts: list[dict[str, Any]]


class TrajectoryDropped(BaseModel):
    """A trajectory that was there and is not any more: `segments` and `response` are null."""

    reason: DropReason
    at: str


class RecordedOutcome(BaseModel):
    """How a rollout ended whose result cannot be read; the ledger counts it so until it is queued again."""

    outcome: str | None
    reward: float | None
    error: dict[str, Any] | None


class ResultAnswer(BaseModel):
    """How a rollout ended. `segments` come with `view=training`, the conversation with `view=full`.

    Where what is stored cannot be read, `error.kind` is `result_unreadable`, and `reward`, `trajectory`, `segments` and
    `response` are null.
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
    judge: Annotated[str | None, Field(description="whom the verifier asked")] = None
    verdicts: Annotated[
        list[dict[str, Any]],
        Field(description="what judges said, of each round of judging, with name and version; the last round counts"),
    ] = []
    policy_version: dict[str, int] | None
    usage: dict[str, int]
    model_calls: int
    tool_calls: int
    timing: dict[str, float]
    worker: str | None = None
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
    """What the model proxy captured: nobody has said how it ended, and nothing has scored it.

    `calls` and the conversation come with `view=full`, `segments` with `training` too. Of a call, `request_ranges` are
    its request's items, as [start, end) of the input and the output in a row; one that failed has an `error`, and as
    `request` the items that no answered call had said.
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

    `captured` is there while it runs: what an outside agent has asked the model in this attempt, null for other agents.
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
    """Say of which characters the ids in paths are; routes check them by hand, since another id is a 404."""
    for calls in document["paths"].values():
        for call in calls.values():
            for parameter in call.get("parameters", ()):
                most = _IDS.get(parameter["name"]) if parameter["in"] == "path" else None
                if most is not None:
                    parameter["schema"] |= {"pattern": ID_PATTERN, "maxLength": most}
