"""The bodies that the API takes, and the answers that its OpenAPI document describes.

Bodies are checked with these models by hand, since they arrive in forms that FastAPI does not read (streams, gzip,
limits of their own). Answers are written as plain JSON; their models are documentation, kept true by tests.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import models_json_schema

from api.docs_page import describe_keys
from api.judge_schemas import RejudgeBody
from api.lease_bodies import AckBody, LeaseBody
from api.session_schemas import ActionBody, OpenSessionBody, ToolArguments, VerifyBody
from gym.batch import BatchSpec
from gym.errors import ErrorKind
from gym.ids import ID_CHARS, ID_PATTERN
from gym.policy import PolicySpec, Version
from gym.request_fields import IsNumber
from gym.state.kept import DropReason

# parameters of paths, with their most characters; those of a rollout end in its row and sample
_IDS = {"batch_id": ID_CHARS, "session_id": ID_CHARS, "name": ID_CHARS, "group_id": 160, "rollout_id": 160}
REF = "#/components/schemas/{model}"


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


class EnvironmentAnswer(BaseModel):
    """What can be run; `error` says why it cannot."""

    name: str
    description: str
    tools: list[dict[str, Any]]
    judges: Annotated[list[str], Field(description="that the verifier may ask; the settings must have them")] = []
    row_schema: dict[str, Any] | None
    example_row: dict[str, Any] | None
    error: str | None = None


class PolicyAnswer(PolicySpec):
    """A registered policy; its key is shown as asterisks."""

    name: str
    revision: int
    paused: Literal["hold", "drain"] | None


class PauseBody(BaseModel):
    """`hold` keeps new model calls waiting; `drain` also waits, up to `timeout_s`, for those in flight."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mode: Literal["hold", "drain"] = "hold"
    timeout_s: Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False), IsNumber] = 60.0


class ResumeBody(BaseModel):
    """The version of the weights that are served from now on, where the trainer counts them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Annotated[Version | None, IsNumber] = None


class PauseAnswer(BaseModel):
    """Calls over all processes; `obeyed` says that each of them has seen the pause."""

    policy: str
    mode: str
    in_flight: int
    held: int
    obeyed: bool


class Items(BaseModel):
    """A list."""

    items: list[dict[str, Any]]


def body_of(model: type[BaseModel], *, required: bool = True) -> dict[str, Any]:
    """The documentation of a JSON body that a route reads by hand."""
    schema = {"$ref": REF.format(model=model.__name__)}
    return {"requestBody": {"required": required, "content": {"application/json": {"schema": schema}}}}


def _describe_ids(document: dict[str, Any]) -> None:
    """Say of which characters the ids in paths are; routes check them by hand, since another id is a 404."""
    for calls in document["paths"].values():
        for call in calls.values():
            for parameter in call.get("parameters", ()):
                most = _IDS.get(parameter["name"]) if parameter["in"] == "path" else None
                if most is not None:
                    parameter["schema"] |= {"pattern": ID_PATTERN, "maxLength": most}


def openapi_of(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, with the bodies that routes read by hand."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        bodies = (AckBody, BatchBody, LeaseBody, PauseBody, PolicySpec, RejudgeBody, RequeueBody, ResumeBody)
        session_bodies = (OpenSessionBody, ToolArguments, ActionBody, VerifyBody)
        models = [(model, "validation") for model in (*bodies, *session_bodies)]
        _, definitions = models_json_schema(models, ref_template=REF)  # type: ignore[arg-type]  # a list of pairs
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        schemas |= definitions["$defs"]
        document["components"]["schemas"] = dict(sorted(schemas.items()))
        describe_keys(document)
        _describe_ids(document)
        app.openapi_schema = document
    return app.openapi_schema
