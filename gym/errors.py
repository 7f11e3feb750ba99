"""Every error of the farm, in two families that never mix.

FarmError
├── RequestError            a client's request that cannot be served; becomes an HTTP status
│   ├── Malformed           400  not JSON, not UTF-8
│   ├── Unauthorized        401  no key, or an unknown one
│   ├── Forbidden           403  the key's scopes do not cover the call
│   ├── NotFound            404
│   ├── Conflict            409  the same id with another body
│   ├── TooLarge            413
│   ├── UnsupportedMedia    415  a content type or encoding that the call does not take
│   ├── Invalid             422  the row and the field are named in the details
│   ├── Overloaded          429  carries retry_after_s
│   └── Unavailable         503  carries retry_after_s; Redis, or another dependency, is away
├── SettingsError           the configuration cannot be used; printed at start
└── RolloutError            failure of one rollout: a kind, a stage, and whether another attempt may help
    ├── ModelUnreachable, ModelRejected
    ├── AgentFailed         AgentUnreachable
    ├── ToolError, EnvironmentFailed (EnvironmentUnavailable), VerifierFailed
    ├── JudgeFailed         JudgeUnreachable, JudgeRefused, VerdictUnreadable
    ├── BadRow, ResultUnreadable, Internal (StorageFailed)
    └── TimedOut, Stalled, WorkerLost

A failed rollout is data: a RolloutError is raised at one boundary, recorded once, and ends in a result's `error`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, ClassVar

MESSAGE_CHARS = 10_000


class FarmError(Exception):
    """Base class of all errors of the farm."""


class RequestError(FarmError):
    """Error of a client's request, which becomes an HTTP status.

    `message` says what was seen, what was expected and what to do; `details` is JSON.
    """

    status: ClassVar[int] = 400

    def __init__(
        self,
        code: str,
        message: str,
        details: dict[str, Any] | None = None,
        *,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details or {}
        self.retry_after_s = retry_after_s


class Malformed(RequestError):
    """The body is not what its content type says."""

    status = 400


class Unauthorized(RequestError):
    """No API key, or one that the farm does not know."""

    status = 401


class Forbidden(RequestError):
    """The API key's scopes do not cover the call."""

    status = 403


class NotFound(RequestError):
    """There is no object with that id."""

    status = 404


class RequestTimedOut(RequestError):
    """The request did not come in time."""

    status = 408


class Conflict(RequestError):
    """The id is taken by another body, or the state forbids the call."""

    status = 409


class TooLarge(RequestError):
    """The body or one row is over its limit."""

    status = 413


class UnsupportedMedia(RequestError):
    """The call does not take bodies of this content type or encoding."""

    status = 415


class Misdirected(RequestError):
    """The request is for a host that the farm does not answer to."""

    status = 421


class Invalid(RequestError):
    """JSON, but not a valid request; details carry `row` and `field` where they are known."""

    status = 422


class Overloaded(RequestError):
    """A quota or the backlog limit is reached."""

    status = 429


class Unavailable(RequestError):
    """Something the farm needs is away for now."""

    status = 503


class LoopDetected(RequestError):
    """The call has come back to the farm that sent it."""

    status = 508


class SettingsError(FarmError):
    """The configuration cannot be used."""


class ErrorKind(StrEnum):
    """Closed vocabulary of `error.kind` in a result."""

    MODEL_UNREACHABLE = "model_unreachable"
    MODEL_REJECTED = "model_rejected"
    AGENT_ERROR = "agent_error"
    TOOL_ERROR = "tool_error"
    ENVIRONMENT_ERROR = "environment_error"
    VERIFIER_ERROR = "verifier_error"
    JUDGE_ERROR = "judge_error"
    TIMEOUT = "timeout"
    STALLED = "stalled"
    WORKER_LOST = "worker_lost"
    BAD_ROW = "bad_row"
    RESULT_UNREADABLE = "result_unreadable"
    INTERNAL = "internal"


DATA_ERRORS = frozenset(
    {
        ErrorKind.AGENT_ERROR,
        ErrorKind.ENVIRONMENT_ERROR,
        ErrorKind.TOOL_ERROR,
        ErrorKind.VERIFIER_ERROR,
        ErrorKind.BAD_ROW,
    }
)
"""Errors that the task's own data or code causes; they usually recur, so they are retried only on request."""


class Stage(StrEnum):
    """Part of a rollout in which an error arose."""

    DISPATCH = "dispatch"
    SETUP = "setup"
    AGENT = "agent"
    MODEL = "model"
    TOOL = "tool"
    VERIFY = "verify"
    JUDGE = "judge"
    COMMIT = "commit"


class RolloutError(FarmError):
    """Failure of a rollout.

    `retryable` is true for failures of the infrastructure: another attempt, elsewhere or later, may succeed. They have
    `limits.max_attempts`; failures by the task's own data have `limits.retry_data_errors`.
    """

    kind: ClassVar[ErrorKind] = ErrorKind.INTERNAL
    stage: Stage = Stage.COMMIT  # the kind's usual one; an error raised elsewhere carries its own
    retryable: ClassVar[bool] = False
    endpoint: str | None = None  # the model server that was asked last, if any

    def __init__(self, message: str) -> None:
        self.message = _stored_text(message)
        super().__init__(self.message)


class ModelUnreachable(RolloutError):
    """No endpoint of the policy answered within the deadline and the retries.

    `away` is true if none answered at all, not even with an error, so the rollout itself cannot be the cause.
    """

    kind = ErrorKind.MODEL_UNREACHABLE
    stage = Stage.MODEL
    retryable = True

    def __init__(self, message: str, *, away: bool = False) -> None:
        super().__init__(message)
        self.away = away


class ModelRejected(RolloutError):
    """The model server refused the request (4xx other than context overflow and overload).

    `upstream_status` is the server's status (502: nothing usable), None if the farm did not need to ask.
    """

    kind = ErrorKind.MODEL_REJECTED
    stage = Stage.MODEL

    def __init__(self, message: str, *, upstream_status: int | None = None, endpoint: str | None = None) -> None:
        super().__init__(message)
        self.upstream_status = upstream_status
        self.endpoint = endpoint


class AgentFailed(RolloutError):
    """An agent outside the farm failed: its program or its service ended with an error or without a usable answer."""

    kind = ErrorKind.AGENT_ERROR
    stage = Stage.AGENT


class AgentUnreachable(AgentFailed):
    """The service of an agent did not answer, or its program could not be started."""

    retryable = True


class ToolError(RolloutError):
    """The tool machinery failed; a tool that merely raises becomes a message to the model instead."""

    kind = ErrorKind.TOOL_ERROR
    stage = Stage.TOOL


class EnvironmentFailed(RolloutError):
    """The environment raised during set-up, or a tool raised this to say that the rollout cannot continue."""

    kind = ErrorKind.ENVIRONMENT_ERROR
    stage = Stage.SETUP


class EnvironmentUnavailable(EnvironmentFailed):
    """Something that the environment needs (a sandbox, a database, a server) is away for now.

    For environments to raise in `setup`, a tool or `verify`: unlike every other error of theirs it is not the task's
    fault, so the rollout runs again, and the environment is parked if it persists.
    """

    retryable = True


class VerifierFailed(RolloutError):
    """The verifier raised, or returned something that is not a reward."""

    kind = ErrorKind.VERIFIER_ERROR
    stage = Stage.VERIFY


class JudgeFailed(RolloutError):
    """There is no verdict."""

    kind = ErrorKind.JUDGE_ERROR
    stage = Stage.JUDGE

    def __init__(self, message: str, *, judge: str = "") -> None:
        super().__init__(message)
        self.judge = judge


class JudgeUnreachable(JudgeFailed):
    """No replica of the judge answered; the trajectory is kept and can be judged later."""

    retryable = True


class JudgeParked(JudgeUnreachable):
    """The judge keeps failing, so it was not asked."""


class JudgeRefused(JudgeFailed):
    """The judge's server refused the request, and would refuse it again."""


class VerdictUnreadable(JudgeFailed):
    """The judge's answer is not a verdict."""


class BadRow(RolloutError):
    """The row cannot be run: its environment no longer exists, or its schema changed."""

    kind = ErrorKind.BAD_ROW
    stage = Stage.SETUP


class ResultUnreadable(RolloutError):
    """Stored data of a rollout is missing or damaged: its trajectory, its record, or its questions to judges."""

    kind = ErrorKind.RESULT_UNREADABLE
    retryable = True


class TimedOut(RolloutError):
    """The rollout's own clock ran out."""

    kind = ErrorKind.TIMEOUT
    stage = Stage.MODEL


class Stalled(RolloutError):
    """No model, token or tool activity for too long."""

    kind = ErrorKind.STALLED
    stage = Stage.MODEL


class WorkerLost(RolloutError):
    """Workers that ran the rollout died, as often as attempts were allowed."""

    kind = ErrorKind.WORKER_LOST
    stage = Stage.DISPATCH
    retryable = True


class Internal(RolloutError):
    """A fault of the farm itself."""


class StorageFailed(Internal):
    """Results cannot be stored for now: the disk is full, read-only, or away."""

    retryable = True


def text_of(error: BaseException) -> str:
    """Return an exception's type and text, cut and in UTF-8; the type alone if its `__str__` raises."""
    try:
        said = str(error)[: MESSAGE_CHARS + 1]
    except Exception:  # noqa: BLE001  the exception is the user's
        said = ""
    return f"{type(error).__name__}: {said}".encode("utf-8", "backslashreplace").decode()


def _stored_text(message: object) -> str:
    """Return an error's text as a result can hold it, even from user code: cut, and in UTF-8."""
    text = str(message)
    if len(text) > MESSAGE_CHARS:
        text = f"{text[:MESSAGE_CHARS]}…"
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
