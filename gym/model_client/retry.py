"""Retry decisions of a call, and the error if it is given up. No I/O; times are passed in."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from gym.errors import ModelUnreachable
from gym.model_client.routing.endpoint import Endpoint
from gym.model_client.routing.endpoint_pool import EndpointPool

BACK_OFF_S = 0.25
BACK_OFF_MAX_S = 8.0
UNHEALTHY_WAIT_S = 60.0
RETRY_AFTER_MOST_S = 3600.0  # larger values are ignored


@dataclass(frozen=True, slots=True)
class AttemptFailure:
    """Retryable failure of an attempt. `text` names the endpoint and the observation.

    `elsewhere_only`: the same endpoint would take as long again. `free`: the server only refused the farm's own
    additions to the request, so the repeat does not count as a retry.
    """

    text: str
    retry_after_s: float = 0.0
    elsewhere_only: bool = False
    free: bool = False


@dataclass(slots=True)
class CallProgress:
    """State of one call over its attempts. `model` is the title that errors name the served model by.

    `endpoint` was asked last; `avoid` are the endpoints that have failed the call. `delivered`: a part of the answer
    has been passed on, so the call must not be sent again. `answered`: an endpoint gave an answer, if only an error.
    """

    model: str
    began: float
    deadline: float
    max_retries: int
    attempts: int = 0
    retries: int = 0
    avoid: list[Endpoint] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    waiting_since: float | None = None
    delivered: bool = False
    endpoint: Endpoint | None = None
    answered: bool = False
    unhealthy_wait_s: float = UNHEALTHY_WAIT_S

    def retry_in_s(
        self, failure: AttemptFailure, endpoint: Endpoint, pool: EndpointPool, *, now: float, jitter: float
    ) -> float:
        """Return the seconds to wait after a failure: a share `jitter` of a back-off that doubles, up to 8 s.

        `Retry-After` is added if there is no other endpoint. Raises ModelUnreachable if the call is given up.
        """
        if failure.free:
            return 0.0
        self.failures[failure.text] += 1
        self.retries += 1
        self._avoid(endpoint, pool)
        if self.retries > self.max_retries:
            raise self.given_up(f"max_retries is {self.max_retries}", now=now)
        other = pool.has_other(endpoint)
        if failure.elsewhere_only and not other:
            raise self.given_up("call_timeout_s was reached and there is no other endpoint", now=now)
        delay_s = jitter * min(BACK_OFF_MAX_S, BACK_OFF_S * 2.0 ** (self.retries - 1))
        if not other:
            delay_s += failure.retry_after_s
        if now + delay_s >= self.deadline:
            raise self.given_up(f"a retry in {delay_s:.1f} s would come after its deadline", now=now)
        return delay_s

    def look_again_in_s(self, pool: EndpointPool, *, now: float) -> float:
        """Return the seconds to wait for a healthy endpoint. Raises ModelUnreachable after `unhealthy_wait_s`."""
        if self.waiting_since is None:
            self.waiting_since = now
        until = min(self.deadline, self.waiting_since + self.unhealthy_wait_s)
        if now >= until:
            states = "; ".join(f"{e.url.shown} is {e.state(now)}: {e.last_error}" for e in pool.endpoints[:8])
            raise self.given_up(f"no endpoint was healthy for {now - self.waiting_since:.1f} s ({states})", now=now)
        return min(until - now, 0.25, max(0.02, pool.reopens_in_s()))

    def given_up(self, why: str, *, now: float, late: bool = False) -> ModelUnreachable:
        """Return the error that ends the call. `late`: time ran out, which says nothing about the endpoints."""
        seen = bool(self.failures) or self.waiting_since is not None
        tried = "; ".join(text if count == 1 else f"{text} ({count} times)" for text, count in self.failures.items())
        attempts = "1 attempt" if self.attempts == 1 else f"{self.attempts} attempts"
        error = ModelUnreachable(
            f"{self.model}: the call was given up after {attempts} in {now - self.began:.1f} s: {why}"
            + (f". Tried: {tried}" if tried else ""),
            away=seen and not late and not self.answered,
        )
        error.endpoint = None if self.endpoint is None else self.endpoint.url.shown
        return error

    def _avoid(self, endpoint: Endpoint, pool: EndpointPool) -> None:
        if endpoint not in self.avoid:
            self.avoid.append(endpoint)
        if all(other in self.avoid for other in pool.endpoints):
            self.avoid = [endpoint]


def retry_after_s(header: str | None, *, now: datetime) -> float:
    """Return `Retry-After` in seconds: a number or an HTTP date (RFC 9110, 10.2.3); 0 if it is unusable."""
    if header is None:
        return 0.0
    try:
        wait_s = float(header)
    except ValueError:
        try:
            when = parsedate_to_datetime(header)
            wait_s = (when.replace(tzinfo=when.tzinfo or UTC) - now).total_seconds()
        except (ValueError, OverflowError, TypeError, IndexError):
            return 0.0
    return wait_s if 0 < wait_s <= RETRY_AFTER_MOST_S else 0.0
