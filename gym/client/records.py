"""Responses of the farm as records; `raw` is always the JSON as it came.

Reading is lenient: a field that a newer farm adds stays in `raw`, one that an older farm leaves out takes its default.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from itertools import groupby
from typing import Any, Literal

import orjson

from gym.errors import ErrorKind, FarmError, NotFound
from gym.jsontypes import JsonObject
from gym.rollout import Ledger, Outcome
from gym.trajectory import Segment, Usage

View = Literal["light", "full", "training"]
Unit = Literal["rollout", "group"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds that a rollout spent by phase; `total_s` leaves the queue out if the farm does."""

    queued_s: float = 0.0
    environment_s: float = 0.0
    model_s: float = 0.0
    tool_s: float = 0.0
    judge_s: float = 0.0
    total_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutFailure:
    """Failure of a rollout: the `error` of its result. `kind` is one of `gym.errors.ErrorKind`, or a newer one."""

    kind: str
    stage: str
    message: str
    retryable: bool = False
    attempts: tuple[JsonObject, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Result of one rollout. `reward` is None unless `outcome` is `succeeded`.

    `response` (a Responses API object) comes with view `full`, `segments` with view `training`.
    """

    rollout_id: str
    batch_id: str
    run: str
    group_id: str
    task_id: str
    sample_index: int
    attempt: int
    environment: str
    outcome: Outcome
    stop_reason: str | None
    error: RolloutFailure | None
    reward: float | None
    reward_components: dict[str, float]
    policy_version: tuple[int, int] | None  # lowest and highest version that was used
    usage: Usage
    model_calls: int
    tool_calls: int
    timing: Timing
    judge: str | None = None  # the judge that the verifier asked
    worker: str | None = None
    judged_by: str | None = None  # the judge worker
    finished_at: str = ""
    raw: JsonObject = field(repr=False)

    @property
    def response(self) -> JsonObject | None:
        """Conversation, if the view includes it. Raises NotFound if it was dropped or cannot be read."""
        self._check_kept()
        response: JsonObject | None = self.raw.get("response")
        return response

    @property
    def verdicts(self) -> tuple[JsonObject, ...]:
        """Verdicts of judges, for each round of judging; the last conclusive round determined the reward."""
        return tuple(self.raw.get("verdicts") or ())

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Tokens for training, if the view includes them; decoded at each access.

        Raises NotFound if the farm has dropped the trajectory for good (its settings `results.*`), or cannot read it
        (`error.kind` is `result_unreadable`; a requeue runs the rollout again).
        """
        self._check_kept()
        return tuple(_segment(item) for item in self.raw.get("segments") or ())

    @property
    def steps(self) -> tuple[JsonObject, ...]:
        """Steps of a stepped environment: turn, action, reward, done, truncated of each.

        They come with view `training` or `full`.
        """
        self._check_kept()
        return tuple(self.raw.get("steps") or ())

    def _check_kept(self) -> None:
        dropped = self.raw.get("trajectory_dropped")
        if dropped:
            raise NotFound(
                "trajectory_dropped",
                f"the trajectory of rollout {self.rollout_id} was dropped at {dropped['at']} ({dropped['reason']})",
                {"rollout_id": self.rollout_id, **dropped},
            )
        if self.error is not None and self.error.kind == ErrorKind.RESULT_UNREADABLE:
            raise NotFound(
                ErrorKind.RESULT_UNREADABLE.value,
                f"the result of rollout {self.rollout_id} cannot be read: {self.error.message}; requeue it",
                {"rollout_id": self.rollout_id},
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A part of the completion log. `done` is true when no more results follow."""

    items: tuple[Result, ...]
    next_after: str | None
    done: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Parked:
    """Rollouts, queued or judging, that wait for a failing dependency to recover; `reasons` name it."""

    count: int = 0
    reasons: tuple[JsonObject, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """Results handed out until `expires_at` (RFC 3339; None if there are none), to be acknowledged.

    `done` is true when the batch has ended and this consumer has acknowledged all of it. `position` is for the next
    call, if one was given.
    """

    lease_id: str
    items: tuple[Result, ...]
    expires_at: str | None
    done: bool
    position: str | None = None

    @property
    def groups(self) -> tuple[tuple[Result, ...], ...]:
        """Return the items by group, in the order in which they came; complete groups if groups were leased."""
        return tuple(tuple(items) for _, items in groupby(self.items, key=lambda item: item.group_id))


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """An event of a batch. `after` is the cursor to resume from once the event has been processed.

    `data` is a result (`rollout`, see `read_result`), a group with its `outcomes`, the batch, or its ledger. An event
    `log_went_back` says that Redis lost its last writes: results after its `data["resume_after"]` may come again.
    """

    kind: str
    data: JsonObject
    after: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchStatus:
    """Status of a batch. `state` is `open` until it is sealed; `environments` holds means by environment."""

    batch_id: str
    run: str
    state: str
    ledger: Ledger
    environments: dict[str, JsonObject]
    parked: Parked
    raw: JsonObject = field(repr=False)

    @property
    def ended(self) -> bool:
        """Whether the batch has ended."""
        return self.state != "open" and self.ledger.ended == self.ledger.submitted


@dataclass(frozen=True, slots=True, kw_only=True)
class Created:
    """Result of creating a batch."""

    batch_id: str
    run: str
    state: str
    submitted: int
    raw: JsonObject = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """Result of adding rows: `accepted` and `repeated` count rows, `submitted` the batch's rollouts."""

    accepted: int = 0
    repeated: int = 0
    submitted: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentInfo:
    """An environment, or, if `error` is set, the reason why it cannot run."""

    name: str
    description: str
    tools: tuple[JsonObject, ...]
    row_schema: JsonObject
    example_row: JsonObject
    error: str | None = None
    raw: JsonObject = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """Readiness of the farm to run rollouts, and the missing parts if it is not ready."""

    ready: bool
    raw: JsonObject = field(repr=False)


def read_result(data: Any) -> Result:
    """Read a result from its JSON. Raises FarmError if an identifying field is missing."""
    try:
        version = data.get("policy_version")
        error = data.get("error")
        return Result(
            rollout_id=data["rollout_id"],
            batch_id=data["batch_id"],
            run=data.get("run") or data["batch_id"],
            group_id=data["group_id"],
            task_id=data["task_id"],
            sample_index=data["sample_index"],
            attempt=data.get("attempt", 1),
            environment=data["environment"],
            outcome=Outcome(data["outcome"]),
            stop_reason=data.get("stop_reason"),
            error=_failure(error) if error else None,
            reward=data.get("reward"),
            reward_components=data.get("reward_components") or {},
            policy_version=(version["min"], version["max"]) if version else None,
            usage=Usage(**_known(Usage, data.get("usage"))),
            model_calls=data.get("model_calls") or 0,
            tool_calls=data.get("tool_calls") or 0,
            timing=Timing(**_known(Timing, data.get("timing"))),
            judge=data.get("judge"),
            worker=data.get("worker"),
            judged_by=data.get("judged_by"),
            finished_at=data.get("finished_at") or "",
            raw=data,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _unreadable("a result", error) from error


def read_page(data: Any) -> Page:
    """Read a page of the completion log."""
    try:
        return Page(
            items=tuple(read_result(item) for item in data["items"]), next_after=data["next_after"], done=data["done"]
        )
    except (KeyError, TypeError) as error:
        raise _unreadable("a page of results", error) from error


def read_lease(data: Any) -> Lease:
    """Read a lease."""
    try:
        return Lease(
            lease_id=data["lease_id"],
            items=tuple(read_result(item) for item in data["items"]),
            expires_at=data["expires_at"],
            done=data["done"],
            position=data.get("position"),
        )
    except (KeyError, TypeError) as error:
        raise _unreadable("a lease", error) from error


def read_events(body: bytes) -> list[Event]:
    """Read server-sent events as the farm writes them, each field on one line; other fields are ignored."""
    events = []
    for block in body.decode().split("\n\n"):
        fields = dict(line.partition(": ")[::2] for line in block.splitlines() if not line.startswith(":"))
        if "event" in fields:
            try:
                events.append(Event(kind=fields["event"], data=orjson.loads(fields["data"]), after=fields.get("id")))
            except (KeyError, orjson.JSONDecodeError) as error:
                raise _unreadable("an event", error) from error
    return events


def read_status(data: Any) -> BatchStatus:
    """Read a batch's status."""
    try:
        return BatchStatus(
            batch_id=data["batch_id"],
            run=data["run"],
            state=data["state"],
            ledger=Ledger(**_known(Ledger, data["ledger"])),
            environments=data.get("environments") or {},
            parked=_parked(data.get("parked") or {}),
            raw=data,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise _unreadable("a batch", error) from error


def read_created(data: Any) -> Created:
    """Read the response to a submission."""
    try:
        return Created(
            batch_id=data["batch_id"],
            run=data.get("run") or data["batch_id"],
            state=data["state"],
            submitted=data["submitted"],
            raw=data,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise _unreadable("a created batch", error) from error


def read_added(data: Any) -> Added:
    """Read the response to added rows."""
    return Added(**_known(Added, data))


def read_environment(data: Any) -> EnvironmentInfo:
    """Read the description of an environment."""
    try:
        return EnvironmentInfo(
            name=data["name"],
            description=data.get("description") or "",
            tools=tuple(data.get("tools") or ()),
            row_schema=data.get("row_schema") or {},
            example_row=data.get("example_row") or {},
            error=data.get("error"),
            raw=data,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise _unreadable("an environment", error) from error


def _failure(data: JsonObject) -> RolloutFailure:
    return RolloutFailure(
        kind=data.get("kind") or ErrorKind.INTERNAL,
        stage=data.get("stage") or "",
        message=data.get("message") or "",
        retryable=bool(data.get("retryable")),
        attempts=tuple(data.get("attempts") or ()),
    )


def _parked(data: JsonObject) -> Parked:
    return Parked(count=data.get("count") or 0, reasons=tuple(data.get("reasons") or ()))


def _segment(data: JsonObject) -> Segment:
    return Segment(
        token_ids=array("i", data["token_ids"]),
        loss_mask=bytearray(data["loss_mask"]),
        logprobs=array("f", data["logprobs"]),
        policy_versions=[(start, end, version) for start, end, version in data.get("policy_versions") or ()],
    )


def _known(record: type, data: Any) -> dict[str, Any]:
    """Return the values for which a record has a field."""
    if data is None:
        return {}
    if not isinstance(data, Mapping):
        raise TypeError(f"{record.__name__} must be a JSON object; got {type(data).__name__}")
    return {item.name: data[item.name] for item in fields(record) if data.get(item.name) is not None}


def _unreadable(what: str, error: Exception) -> FarmError:
    return FarmError(
        f"{what} cannot be read from the farm's answer ({type(error).__name__}: {error}); does it speak API version 1?"
    )
