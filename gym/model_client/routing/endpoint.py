"""Circuit breaker of one base URL, with its load and the server's capabilities as this process knows them. No I/O.

`EJECT_AFTER` failures with no answer in between eject the endpoint. After its back-off (1 s, doubled up to 30 s) it is
half-open: one call is let through, and its outcome decides. An endpoint that still answers, if only with 500, is
ejected only if it is not alone: a server that fails one call in three is better than none.

Health checks (`gym.model_client.routing.health`) count too. A failed check ejects an endpoint until it passes one; then
it is healthy at once. An endpoint that passes all checks and fails calls waits for its probe.

Invariant: a half-open endpoint has at most one probe under way.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Literal

from gym.jsontypes import JsonObject
from gym.model_client.http.urls import EndpointUrl
from gym.model_client.routing.served_model import ServedModel
from gym.model_client.tokens.capture import Capture
from gym.model_client.tokens.prefix import PrefixSupport
from gym.model_client.tokens.response_tokens import ResponseCapture

EJECT_AFTER = 3
BACK_OFF_S = 1.0
BACK_OFF_MAX_S = 30.0

# erred: the server's own code failed (500); failed: no answer, or an error from a proxy before the server
Outcome = Literal["answered", "erred", "failed", "neutral"]
State = Literal["healthy", "ejected", "half_open", "probing"]
# dead: connection refused; ill: the server reports it; silent: no answer, as from a busy server
Finding = Literal["dead", "ill", "silent"]


class Endpoint:
    """Endpoint of a policy, compared by identity. Times are those of the pool's clock.

    The argument `alone` says that no other endpoint of the policy is healthy. `moves` holds a callback for each call in
    flight, which makes it try another endpoint.
    """

    __slots__ = (
        "__weakref__",
        "answered",
        "back_off_s",
        "busy_since",
        "capture",
        "ejected_until",
        "failed",
        "failed_check",
        "failures",
        "heard_at",
        "in_flight",
        "last_answer",
        "last_error",
        "moves",
        "prefix",
        "probing",
        "reads_objects_only",
        "response_capture",
        "retired",
        "salt",
        "url",
    )

    def __init__(self, url: EndpointUrl) -> None:
        self.url = url
        self.salt = zlib.crc32(url.shown.encode())
        self.in_flight = 0
        self.failures = 0  # since the last answer
        self.ejected_until: float | None = None
        self.back_off_s = 0.0
        self.probing = False
        self.retired = False
        self.failed_check = False  # the last one
        self.last_answer = float("-inf")  # to a call
        self.heard_at = float("-inf")  # a sign of life: an answer, or a part of one
        self.busy_since = float("-inf")  # the call that ended idleness
        self.last_error = ""
        self.answered = 0
        self.failed = 0
        self.capture = Capture()
        self.response_capture = ResponseCapture()
        self.prefix = PrefixSupport()
        self.reads_objects_only = False  # it decodes the arguments of earlier calls
        self.moves: set[Callable[[], None]] = set()

    def state(self, now: float) -> State:
        """Return the state of the circuit breaker."""
        if self.ejected_until is None:
            return "healthy"
        if self.probing:
            return "probing"
        return "ejected" if now < self.ejected_until else "half_open"

    def quiet_s(self, now: float) -> float:
        """Return the seconds with calls in flight and no sign of life; 0 without calls."""
        return now - max(self.heard_at, self.busy_since) if self.in_flight else 0.0

    def describe(self, now: float) -> JsonObject:
        """Describe the endpoint for display and metrics, without secrets."""
        return {
            "url": self.url.shown,
            "state": self.state(now),
            "in_flight": self.in_flight,
            "answered": self.answered,
            "failed": self.failed,
            "failures_in_a_row": self.failures,
            "last_error": self.last_error or None,
            "token_ids": self.capture.level,
            "required_prefix": self.prefix.describe(),
        }

    def begin(self, now: float) -> None:
        """Count a call that is sent."""
        if self.ejected_until is not None:
            self.probing = True
        if self.in_flight == 0:
            self.busy_since = now
        self.in_flight += 1

    def end(self, outcome: Outcome, *, began: float, now: float, alone: bool, error: str) -> bool:
        """Record the end of the call that began at `began`; return whether it ejected the endpoint."""
        self.in_flight -= 1
        probed = self.probing and began >= (self.ejected_until or 0.0)
        if probed:
            self.probing = False
        if outcome == "answered":
            self.answered += 1
            self.last_answer = self.heard_at = now
            self.failures = 0
            self.ejected_until = None
            self.back_off_s = 0.0
            self.probing = False
            return False
        if outcome == "neutral":
            return False
        self.failed += 1
        self.failures += 1
        self.last_error = error
        if outcome == "erred" and alone:
            self.ejected_until = None
            return False
        if not (probed or (self.ejected_until is None and self.failures >= EJECT_AFTER)):
            return False
        self.back_off_s = min(BACK_OFF_MAX_S, self.back_off_s * 2 or BACK_OFF_S)
        self.ejected_until = now + self.back_off_s
        self.forget()
        return True

    def pass_check(self, *, now: float, asked: bool) -> bool:
        """Record a passed health check; return whether that ends the ejection.

        `asked`: the check asked for a token. The next failed call ejects the endpoint again, for longer.
        """
        if asked:
            self.heard_at = now
        back = self.failed_check and self.ejected_until is not None
        self.failed_check = False
        if back:
            self.ejected_until = None
            self.probing = False
            self.failures = min(self.failures, EJECT_AFTER - 1)
        return back

    def fail_check(self, finding: Finding, *, began: float, now: float, hold_s: float, alone: bool, error: str) -> bool:
        """Record a failed health check that began at `began`; return whether it ejected the endpoint.

        The ejection lasts `hold_s`, within which the next check follows. A lone endpoint is ejected only if it is dead.
        A sign of life after `began` overrules the check.
        """
        if self.heard_at >= began:
            return False
        was_ejected = self.ejected_until is not None
        if finding != "dead" and alone and not was_ejected:
            return False
        self.failed_check = True
        self.last_error = error
        self.ejected_until = max(self.ejected_until or 0.0, now + hold_s)
        self.probing = False  # of a probe in progress only an answer still counts
        if not was_ejected:
            self.forget()
        return not was_ejected

    def try_soon(self, now: float) -> None:
        """End the back-off: the next call is the probe."""
        if self.ejected_until is not None:
            self.ejected_until = min(self.ejected_until, now)

    def move_calls(self) -> int:
        """Make the calls in flight try another endpoint; return their number."""
        moves = list(self.moves)
        for move in moves:
            move()
        return len(moves)

    def forget(self) -> None:
        """Forget the learned capabilities: the server may have been restarted or replaced."""
        self.capture = Capture()
        self.response_capture = ResponseCapture()
        self.prefix = PrefixSupport()
        self.reads_objects_only = False  # it decodes the arguments of earlier calls


def request_headers(policy: ServedModel, endpoint: Endpoint) -> dict[str, str]:
    """Return the headers of a JSON request, with the policy's API key or else the credentials of the endpoint's URL."""
    headers = {"Content-Type": "application/json"}
    if policy.spec.api_key is not None:
        headers["Authorization"] = f"Bearer {policy.spec.api_key}"
    elif endpoint.url.basic is not None:
        headers["Authorization"] = endpoint.url.basic
    return headers
