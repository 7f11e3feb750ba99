"""Calls as values: the request, the response, and the rules for retries. No I/O.

A `Flow` is a generator that yields requests, is sent responses and returns the call's result, so each call is written
once for the async and the sync client. `with_retries` turns a flow into attempts; a transport carries them out.

Invariant: every request is idempotent (its ids are in it), except those marked `repeatable=False`, which are sent again
only if the farm has certainly not acted on them.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import orjson

from gym.errors import (
    Conflict,
    FarmError,
    Forbidden,
    Invalid,
    Malformed,
    NotFound,
    Overloaded,
    RequestError,
    TooLarge,
    Unauthorized,
    Unavailable,
)
from gym.jsontypes import JsonObject
from gym.plain import exact_json

T = TypeVar("T")

JSON = "application/json"
NDJSON = "application/x-ndjson"

MAX_RETRY_AFTER_S = 60.0
_BY_STATUS: dict[int, type[RequestError]] = {
    error.status: error
    for error in (
        Malformed,
        Unauthorized,
        Forbidden,
        NotFound,
        Conflict,
        TooLarge,
        Invalid,
        Overloaded,
        Unavailable,
    )
}
# farm errors that a repeat would meet again; every other 5xx is retried, including those of a load balancer
_FINAL_CODES = frozenset({"internal"})
WARN_AFTER_S = 2.0
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request to the farm. A transport for another address scheme handles the same requests.

    `key` is the idempotency key of a call whose body has no id. `body` is sent in order, possibly again. `wait_s` is
    how long the farm itself may delay the response; `after_s` is a pause before sending. `accept` holds statuses beside
    2xx that are not errors.
    """

    method: str
    path: str
    query: Mapping[str, str | int | float] = field(default_factory=dict)
    body: Sequence[bytes] = ()
    content_type: str = JSON
    wait_s: float = 0.0
    after_s: float = 0.0
    repeatable: bool = True
    key: str | None = None
    accept: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """The farm's response, complete. `retry_after` is the unparsed header."""

    status: int
    body: bytes
    retry_after: str | None = None

    def json(self) -> Any:
        """Decode the body. Raises FarmError if it is not JSON."""
        try:
            return exact_json.loads(self.body)
        except orjson.JSONDecodeError:
            start = self.body[:80].decode(errors="replace")
            raise FarmError(f"the answer is not JSON but starts {start!r}; is this the farm's address?") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Disconnected:
    """Failure without a response. `sent` is False if the farm cannot have seen the request."""

    reason: str
    sent: bool


Flow = Generator[Request, Response, T]
Attempts = Generator[Request, Response | Disconnected, T]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Duration and pace of retries: jitter under a doubling ceiling.

    `budget_s` counts from the first failure of a request. The default is longer than a farm takes to drain and restart.
    `retries` also bounds the number of retries.
    """

    budget_s: float = 150.0
    retries: int | None = None
    first_s: float = 0.25
    most_s: float = 10.0
    clock: Callable[[], float] = time.monotonic

    def left_s(self, attempt: int, failed_at: float) -> float:
        """Return the time that is left for retries; 0 if their number is used up."""
        if self.retries is not None and attempt >= self.retries:
            return 0.0
        return self.budget_s - (self.clock() - failed_at)

    def pause_s(self, attempt: int, *, retry_after: str | None, chance: random.Random) -> float:
        """Return the pause before retry number `attempt`, counted from 0; never shorter than the farm asked for."""
        ceiling = min(self.most_s, self.first_s * 2.0**attempt)
        jittered = chance.uniform(ceiling / 2, ceiling)
        return max(jittered, min(_seconds(retry_after), MAX_RETRY_AFTER_S))


def with_retries(flow: Flow[T], policy: RetryPolicy, chance: random.Random) -> Attempts[T]:
    """Yield the attempts that carry out a flow.

    Raises the RequestError for an error response, or `Unavailable` with code `unreachable` if there was no response.
    """
    try:
        request = next(flow)
        while True:
            try:
                response = yield from _exchange(request, policy, chance)
            except RequestError as error:
                request = flow.throw(error)
            else:
                request = flow.send(response)
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        flow.close()


def _exchange(request: Request, policy: RetryPolicy, chance: random.Random) -> Attempts[Response]:
    attempt = 0
    failed_at: float | None = None
    warned = False
    while True:
        answer = yield request
        if isinstance(answer, Response) and (200 <= answer.status < 300 or answer.status in request.accept):
            if warned:
                _LOG.info("the farm answers again", extra={"action": "farm_back"})
            return answer
        failed_at = policy.clock() if failed_at is None else failed_at
        left_s = policy.left_s(attempt, failed_at)
        if left_s <= 0 or not _may_repeat(request, answer):
            raise _error(request, answer, attempts=attempt + 1)
        retry_after = answer.retry_after if isinstance(answer, Response) else None
        pause_s = min(left_s, policy.pause_s(attempt, retry_after=retry_after, chance=chance))
        if not warned and policy.budget_s - left_s + pause_s >= WARN_AFTER_S:
            warned = True
            _warn(request, answer, left_s)
        request = replace(request, after_s=pause_s)
        attempt += 1


def _warn(request: Request, answer: Response | Disconnected, left_s: float) -> None:
    error = _error(request, answer, attempts=1)
    _LOG.warning("retrying the request for up to %.0f s: %s", left_s, error, extra={"action": "farm_away"})


def _may_repeat(request: Request, answer: Response | Disconnected) -> bool:
    if isinstance(answer, Disconnected):
        return request.repeatable or not answer.sent
    if answer.status == 429:
        return True
    return answer.status >= 500 and request.repeatable and _code_of(answer) not in _FINAL_CODES


def _code_of(answer: Response) -> str | None:
    """Return the code of the farm's error; None if another server answered."""
    try:
        return str(orjson.loads(answer.body)["error"]["code"])
    except (orjson.JSONDecodeError, TypeError, KeyError):
        return None


def _error(request: Request, answer: Response | Disconnected, *, attempts: int) -> RequestError:
    asked = f"{request.method} {request.path}"
    if isinstance(answer, Disconnected):
        tries = f"{attempts} times" if attempts > 1 else "once"
        return Unavailable(
            "unreachable",
            f"the farm did not answer {asked}, tried {tries}: {answer.reason}; is it running at this address?",
        )
    return error_of(answer, asked)


def error_of(response: Response, asked: str) -> RequestError:
    """Return the error for a response, by its status and its `error` object."""
    code, message = f"http_{response.status}", ""
    details: JsonObject = {}
    try:
        error = orjson.loads(response.body)["error"]
        code, message = str(error["code"]), str(error["message"])
        details = error.get("details") or {}
    except (orjson.JSONDecodeError, TypeError, KeyError):
        start = response.body[:80].decode(errors="replace")
        message = f"{asked} was answered {response.status} without an error object of the farm, body {start!r}"
    kind = _BY_STATUS.get(response.status, Unavailable if response.status >= 500 else RequestError)
    retry_after_s = _seconds(response.retry_after) if response.retry_after is not None else None
    return kind(code, message, details, retry_after_s=retry_after_s)


def _seconds(retry_after: str | None) -> float:
    """Parse Retry-After in seconds (RFC 9110, 10.2.3); the form with a date is ignored."""
    try:
        return max(0.0, float(retry_after or 0.0))
    except ValueError:
        return 0.0
