"""Errors of model calls in the caller's dialect.

A refusal of the model server that the request caused keeps its status. Any other refusal (wrong key, model or address)
is the policy's fault and becomes a 502: the caller's key and path are right, and a retry changes nothing.

Invariant: an answer contains only the error's text; errors of the farm hold no secrets.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Literal

from gym.errors import BadRow, ModelRejected, ModelUnreachable, RequestError
from gym.jsontypes import JsonObject
from gym.state.redis.driver import RedisError

Shape = Literal["openai", "anthropic", "google"]

RETRY_AFTER_S = 2.0
LOOP = 508
_OF_THE_REQUEST = frozenset({400, 413, 422})  # statuses of the model server
_POLICY = "the model server refused the farm, not you: the owner of the policy has to fix it. "
_UNUSABLE = "the model server is at fault, not you: the owner of the policy has to fix it. "
_LOG = logging.getLogger(__name__)
_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}

_GOOGLE_STATUSES = {
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ABORTED",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    504: "DEADLINE_EXCEEDED",
}


class CannotCount(RequestError):
    """The model server has no way to count tokens."""

    status = 501

    def __init__(self) -> None:
        super().__init__("cannot_count", "the model server has no /tokenize, so the farm cannot count tokens for it")


class ContextTooLong(RequestError):
    """The conversation no longer fits the model's context."""

    status = 400

    def __init__(self, message: str) -> None:
        super().__init__("context_length_exceeded", message)


@dataclass(frozen=True, slots=True)
class Problem:
    """Failed call: HTTP status, code, text, the field at fault, seconds until a retry makes sense.

    `final`: a retry would fail again, although clients usually retry this status.
    """

    status: int
    code: str
    message: str
    param: str | None = None
    retry_after_s: float | None = None
    final: bool = False

    def body(self, shape: Shape) -> JsonObject:
        """Return the error object of a dialect."""
        if shape == "anthropic":
            default = "invalid_request_error" if self.status < 500 else "api_error"
            kind = _ANTHROPIC_TYPES.get(self.status, default)
            # clients of Anthropic's API recognise an overflow by these words
            too_long = "prompt is too long: " if self.code == "context_length_exceeded" else ""
            return {"type": "error", "error": {"type": kind, "message": too_long + self.message}}
        if shape == "google":
            default = "INVALID_ARGUMENT" if self.status < 500 else "UNAVAILABLE"
            status = _GOOGLE_STATUSES.get(self.status, default)
            long = "The input token count exceeds the maximum number of tokens allowed: "
            text = (long if self.code == "context_length_exceeded" else "") + self.message
            return {"error": {"code": self.status, "message": text, "status": status}}
        default = "invalid_request_error" if self.status < 500 else "server_error"
        kind = _OPENAI_TYPES.get(self.status, default)
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """Headers: `Retry-After`, `WWW-Authenticate` for 401, and the official clients' header against retries."""
        headers = {} if self.retry_after_s is None else {"retry-after": str(max(1, math.ceil(self.retry_after_s)))}
        if self.final:
            headers["x-should-retry"] = "false"
        return headers | ({"www-authenticate": "Bearer"} if self.status == 401 else {})


def problem_of(error: Exception) -> Problem:
    """Convert an error for the caller. An unexpected error is logged, and its text is hidden."""
    match error:
        case RequestError():
            field = error.details.get("field")
            param = str(field) if field else None
            return Problem(error.status, error.code, error.message, param, error.retry_after_s)
        case ModelUnreachable():
            return Problem(503, str(error.kind), error.message, retry_after_s=RETRY_AFTER_S)
        case ModelRejected():
            return _rejected(error)
        case BadRow():
            return Problem(422, str(error.kind), error.message)
        case RedisError():
            _LOG.warning("a call could not be recorded: %s", error, extra={"action": "redis_unavailable"})
            text = "the farm cannot reach its Redis for now; send the same request again later"
            return Problem(503, "redis_unavailable", text, retry_after_s=RETRY_AFTER_S)
        case _:
            _LOG.error("a call failed", exc_info=error, extra={"action": "proxy_internal"})
            return Problem(500, "internal", "the farm made a mistake that its log describes; report it")


def _rejected(error: ModelRejected) -> Problem:
    status = error.upstream_status
    if status is None or status in _OF_THE_REQUEST:
        return Problem(status or 400, str(error.kind), error.message)
    if status == LOOP:  # each proxy on the path passes it on without a retry
        return Problem(status, str(error.kind), error.message, final=True)
    said = _UNUSABLE if status == 502 else _POLICY
    return Problem(502, str(error.kind), said + error.message, final=True)
