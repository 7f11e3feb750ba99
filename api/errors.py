"""Every error as the API shows it: one JSON shape, a status, and `Retry-After` where it helps.

Invariant: what a client sent never ends in a 500, and an answer never carries more than the error's own text. What
Redis cannot do for now is a 503; a submission that no longer fits its memory is a 429.
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
    """The answer that stands for an error."""
    return _response(
        error.status, error.code, error.message, error.details, _retry_headers(error.retry_after_s) | _challenge(error)
    )


def invalid_body(error: ValidationError, *, code: str, what: str) -> Invalid:
    """The error for a body that its model refuses; `what` names the body, such as "the batch"."""
    return _invalid(code, what, error.errors(include_url=False, include_input=False), skip=0)


def redis_error(error: RedisError, *, submitting: bool) -> RequestError | None:
    """What an error of redis-py means for a client, `None` where it is a fault of the farm's."""
    text = str(error)
    if isinstance(error, OutOfMemoryError) or text.startswith("OOM"):
        kind = Overloaded if submitting else Unavailable
        return kind(
            "redis_full",
            "Redis is out of memory; nothing was stored. Wait until results have been read and old batches have gone, "
            "or give Redis more memory",
            retry_after_s=10 * REDIS_RETRY_S,
        )
    if not will_pass(error):
        return None
    return Unavailable(
        "redis_unavailable",
        "the farm cannot reach its Redis or Redis cannot serve for now; send the same request again later",
        {"reason": type(error).__name__},
        retry_after_s=REDIS_RETRY_S,
    )


def add_error_handlers(app: FastAPI) -> None:
    """Give every error its shape."""
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
    """FastAPI's own checks: parameters of the path and the query."""
    assert isinstance(error, RequestValidationError)  # noqa: S101  as above
    return error_response(_invalid("invalid_request", "the request", error.errors(), skip=1))


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101  as above
    path = request.url.path[:200]
    message = {
        404: f"there is no {path} here; GET /openapi.json lists every call",
        405: f"{path} does not take {request.method}; the header Allow says what it takes",
    }.get(error.status_code, str(error.detail))
    code = _HTTP_CODES.get(error.status_code, f"http_{error.status_code}")
    headers = {name.lower(): value for name, value in (error.headers or {}).items()}
    if error.status_code == 405:
        headers["allow"] = _allowed(request) or headers.get("allow", "GET")
    return _response(error.status_code, code, message, {"path": path}, headers)


def _allowed(request: Request) -> str:
    """Every method of a path; the router names those of its first route only."""
    routes: Sequence[APIRoute] = request.app.state.routes
    found = {method for route in routes if route.path_regex.match(request.url.path) for method in route.methods or ()}
    return ", ".join(sorted(found))


async def _on_redis_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RedisError)  # noqa: S101  as above
    known = redis_error(error, submitting=request.method == "POST")
    if known is None:
        raise error
    # an error of a pipeline repeats the command, with what a client sent in it
    reason = type(error).__name__
    _LOG.warning("%s %s: %s", request.method, request.url.path, reason, extra={"action": "redis_unavailable"})
    return error_response(known)


async def _on_disconnect(_request: Request, _error: Exception) -> Response:
    """Nobody reads it; the server wants an answer all the same."""
    return Response(status_code=400)


async def _on_fault(_request: Request, _error: Exception) -> Response:
    """A fault of the farm's own; the server logs it after this answer."""
    return _response(500, "internal", "the farm made a mistake that its log describes; report it", {}, {})


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
    """What was wrong."""

    code: str
    message: str
    details: dict[str, Any]


class ErrorAnswer(BaseModel):
    """The shape of every error."""

    error: ErrorDetail
