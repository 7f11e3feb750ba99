"""Error responses of the API: one JSON shape, a status, and `Retry-After` where a retry helps.

Invariant: no client input causes a 500, and a response never carries more than the error's own text. If Redis is
unavailable, the answer is 503; if a submission does not fit its memory, 429.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from gym.errors import Invalid, Overloaded, RequestError, Unavailable
from gym.state.redis.driver import OutOfMemoryError, RedisError
from gym.state.redis.store import will_pass

REDIS_RETRY_S = 2.0
_LOG = logging.getLogger(__name__)
_HTTP_CODES = {404: "not_found", 405: "method_not_allowed"}


def error_response(error: RequestError) -> Response:
    """Return the response for an error."""
    return _response(
        error.status, error.code, error.message, error.details, _retry_headers(error.retry_after_s) | _challenge(error)
    )


def invalid_body(error: ValidationError, *, code: str, what: str) -> Invalid:
    """Return the error for a body that its model refuses; `what` names the body, such as "the batch"."""
    return _invalid(code, what, error.errors(include_url=False, include_input=False), skip=0)


def redis_error(error: RedisError, *, submitting: bool) -> RequestError | None:
    """Translate an error of redis-py for a client; None if it is a bug in the farm."""
    text = str(error)
    if isinstance(error, OutOfMemoryError) or text.startswith("OOM"):
        kind = Overloaded if submitting else Unavailable
        return kind(
            "redis_full",
            "Redis is out of memory; nothing was stored. Wait until results have been read and "
            "old batches have expired, or give Redis more memory",
            retry_after_s=10 * REDIS_RETRY_S,
        )
    if not will_pass(error):
        return None
    return Unavailable(
        "redis_unavailable",
        "the farm cannot reach its Redis, or Redis cannot serve at the moment; send the same request again later",
        {"reason": type(error).__name__},
        retry_after_s=REDIS_RETRY_S,
    )


def add_error_handlers(app: FastAPI) -> None:
    """Register a handler for every kind of error."""
    app.add_exception_handler(RequestError, _on_request_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RedisError, _on_redis_error)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
    app.add_exception_handler(Exception, _on_fault)


async def _on_request_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)  # noqa: S101  starlette looks handlers up by class
    return error_response(error)


async def _on_validation_error(_request: Request, error: Exception) -> Response:
    """Handle FastAPI's own checks: path and query parameters."""
    assert isinstance(error, RequestValidationError)  # noqa: S101  as above
    return error_response(_invalid("invalid_request", "the request", error.errors(), skip=1))


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101  as above
    path = request.url.path[:200]
    message = {
        404: f"there is no path {path}; GET /openapi.json lists every call",
        405: f"{path} does not support {request.method}; the header Allow lists the methods",
    }.get(error.status_code, str(error.detail))
    code = _HTTP_CODES.get(error.status_code, f"http_{error.status_code}")
    headers = {name.lower(): value for name, value in (error.headers or {}).items()}
    if error.status_code == 405:
        headers["allow"] = _allowed(request) or headers.get("allow", "GET")
    return _response(error.status_code, code, message, {"path": path}, headers)


def _allowed(request: Request) -> str:
    """Return every method of a path; the router reports those of its first route only."""
    routes: Sequence[APIRoute] = request.app.state.routes
    found = {method for route in routes if route.path_regex.match(request.url.path) for method in route.methods or ()}
    return ", ".join(sorted(found))


async def _on_redis_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RedisError)  # noqa: S101  as above
    known = redis_error(error, submitting=request.method == "POST")
    if known is None:
        raise error
    # an error of a pipeline repeats the command, including client input
    reason = type(error).__name__
    _LOG.warning("%s %s: %s", request.method, request.url.path, reason, extra={"action": "redis_unavailable"})
    return error_response(known)


async def _on_disconnect(_request: Request, _error: Exception) -> Response:
    """Answer a client that has disconnected: the server still requires a response."""
    return Response(status_code=400)


async def _on_fault(_request: Request, _error: Exception) -> Response:
    """Handle a bug of the farm; the server logs it after this response."""
    return _response(500, "internal", "internal error of the farm; its log has the details, please report it", {}, {})


def _invalid(code: str, what: str, errors: Sequence[Any], *, skip: int) -> Invalid:
    found = [
        {"field": ".".join(str(part) for part in error["loc"][skip:])[:200], "message": str(error["msg"])[:500]}
        for error in errors[:20]
    ]
    first = found[0]
    details: dict[str, Any] = {"errors": found, "field": first["field"]}
    rest = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return Invalid(code, f"field `{first['field']}` of {what}: {first['message']}{rest}", details)


def _retry_headers(retry_after_s: float | None) -> dict[str, str]:
    return {} if retry_after_s is None else {"retry-after": str(max(1, math.ceil(retry_after_s)))}


def _challenge(error: RequestError) -> dict[str, str]:
    return {"www-authenticate": "Bearer"} if error.status == 401 else {}


def _response(status: int, code: str, message: str, details: dict[str, Any], headers: dict[str, str]) -> Response:
    body = orjson.dumps({"error": {"code": code, "message": message, "details": details}}, default=str)
    return Response(body, status_code=status, headers=headers, media_type="application/json")


class ErrorDetail(BaseModel):
    """Description of one error."""

    code: str
    message: str
    details: dict[str, Any]


class ErrorAnswer(BaseModel):
    """Body of every error response."""

    error: ErrorDetail
