"""Definition of a rollout's result: its fields, its timing, and the fields that each view adds.

Workers, judge workers and the ledger build their records with `RolloutResult`. The API's schemas, the client's records
and the fake farm are checked against it in `tests/unit/gym/results/test_result.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, TypedDict

import orjson

from gym.errors import ErrorKind, RolloutError, Stage
from gym.ids import RolloutRef
from gym.jsontypes import JsonObject
from gym.results.storable import storable_text
from gym.rollout import Outcome, StopReason
from gym.trajectory import Usage


class View(StrEnum):
    """Amount of a result that a reader gets."""

    LIGHT = "light"
    FULL = "full"
    TRAINING = "training"


TRAINING_FIELDS = ("segments", "steps")
FULL_FIELDS = ("responses_create_params", "response", "calls", *TRAINING_FIELDS)
"""Fields that the views `training` and `full` add to the light record."""

MARKS = ("trajectory_dropped", "recorded", "trajectory")
"""Fields of results alone whose trajectory was dropped or cannot be read."""


@dataclass(slots=True, kw_only=True)
class RolloutTiming:
    """Seconds in each part of a rollout; `total_s` does not include `queued_s`."""

    queued_s: float = 0.0
    environment_s: float = 0.0
    model_s: float = 0.0
    tool_s: float = 0.0
    judge_s: float = 0.0
    total_s: float = 0.0

    def as_dict(self) -> dict[str, float]:
        """Return the seconds by name."""
        return {name: getattr(self, name) for name in TIMES}


TIMES = tuple(each.name for each in fields(RolloutTiming))


class RolloutIdentity(TypedDict):
    """Fields that identify a rollout, in results and in answers about unfinished ones."""

    rollout_id: str
    batch_id: str
    run: str
    group_id: str
    task_id: str
    sample_index: int
    environment: str


def identity(rollout: RolloutRef, *, run: str, task_id: str, environment: str) -> RolloutIdentity:
    return {
        "rollout_id": str(rollout),
        "batch_id": rollout.batch_id,
        "run": run,
        "group_id": rollout.group_id,
        "task_id": task_id,
        "sample_index": rollout.sample,
        "environment": environment,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultFailure:
    """The `error` of a result; `attempts` are the failed attempts, this one included."""

    kind: ErrorKind
    stage: Stage
    message: str
    retryable: bool
    attempts: list[Any] = field(default_factory=list)

    @staticmethod
    def of(error: RolloutError, attempts: list[Any]) -> ResultFailure:
        return ResultFailure(
            kind=error.kind,
            stage=error.stage,
            message=storable_text(error.message),
            retryable=error.retryable,
            attempts=attempts,
        )


def failed_attempt(
    attempt: int, worker: str | None, kind: ErrorKind | str, message: str, *, retryable: bool
) -> JsonObject:
    """Return an entry of `attempts`."""
    return {"attempt": attempt, "worker": worker, "kind": kind, "message": message, "retryable": retryable}


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutResult:
    """The light record of a rollout. The defaults are those of a rollout that recorded nothing.

    `error` is JSON where the farm itself ended the rollout. `worker` and `judged_by` are left out of the record while
    they are None. `verdicts` holds every round of judging.
    """

    rollout_id: str
    batch_id: str
    run: str
    group_id: str
    task_id: str
    sample_index: int
    attempt: int
    environment: str
    outcome: Outcome | str
    stop_reason: StopReason | str
    error: ResultFailure | JsonObject | None
    reward: float | None = None
    reward_components: dict[str, float] = field(default_factory=dict)
    judge: str | None = None
    verdicts: list[JsonObject] = field(default_factory=list)
    policy_version: JsonObject | None = None
    usage: Usage = Usage()  # noqa: RUF009  it is frozen
    model_calls: int = 0
    tool_calls: int = 0
    timing: RolloutTiming = field(default_factory=RolloutTiming)
    worker: str | None = None
    judged_by: str | None = None
    finished_at: str

    def as_json(self) -> bytes:
        """Return the record as it is stored and shown with `view=light`."""
        shown = {name: getattr(self, name) for name in RESULT_FIELDS}
        return orjson.dumps({name: value for name, value in shown.items() if value is not None or name not in OPTIONAL})

    def as_dict(self) -> JsonObject:
        """Return the record as JSON values."""
        record: JsonObject = orjson.loads(self.as_json())
        return record


RESULT_FIELDS = tuple(each.name for each in fields(RolloutResult))
OPTIONAL = frozenset({"worker", "judged_by"})
"""Fields that a record may lack."""


def rfc3339(ms: int) -> str:
    """Return a time in ms as the API shows it."""
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
