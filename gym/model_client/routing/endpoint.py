"""One base URL of a policy, with what this process knows of it: load, health, what the server can do. No I/O.

`EJECT_AFTER` failures with no answer in between eject it. After its back-off (1 s, doubled up to 30 s) it is half-open:
one call is let through, and its outcome decides. One that still answers, if only with 500, is ejected only where it is
not alone: a server that fails one call in three is better than none.

Health checks (`gym.model_client.routing.health`) have a say too. What fails one is ejected without a call, and stays so
while it fails them; what passes one after that is healthy at once. One that passes them all and fails calls waits for
its probe.

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

# erred: the server's own code failed (500); failed: nobody answered, or something before the server said so
Outcome = Literal["answered", "erred", "failed", "neutral"]
State = Literal["healthy", "ejected", "half_open", "probing"]
# dead: nobody listens; ill: it says so itself; silent: no answer, which a busy server gives too
Finding = Literal["dead", "ill", "silent"]


class Endpoint:
    """Identity is what counts. Times are the pool's clock.

    `alone`, where a method takes it, says that no other endpoint of the policy is healthy. `moves` holds for each call
    in flight what makes it try elsewhere.
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
        self.moves: set[Callable[[], None]] = set()

    def state(self, now: float) -> State:
        """Whether calls may go to it."""
        if self.ejected_until is None:
            return "healthy"
        if self.probing:
            return "probing"
        return "ejected" if now < self.ejected_until else "half_open"

    def quiet_s(self, now: float) -> float:
        """How long it has had calls and given no sign of life; 0 while it has none."""
        return now - max(self.heard_at, self.busy_since) if self.in_flight else 0.0

    def describe(self, now: float) -> JsonObject:
        """For people and metrics; nothing secret."""
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
        """A call is sent to it."""
        if self.ejected_until is not None:
            self.probing = True
        if self.in_flight == 0:
            self.busy_since = now
        self.in_flight += 1

    def end(self, outcome: Outcome, *, began: float, now: float, alone: bool, error: str) -> bool:
        """The call that began then is over; returns whether it got the endpoint ejected."""
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
        """A health check was answered; returns whether that brought the endpoint back.

        `asked` is whether it was asked for a token. The next call that fails ejects it again, for longer.
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
        """A health check that began then has failed; returns whether it got the endpoint ejected.

        The ejection lasts `hold_s`, in which the next check has its say. Only a dead one is ejected where it is alone.
        A sign of life since the check began proves the check wrong.
        """
        if self.heard_at >= began:
            return False
        was_ejected = self.ejected_until is not None
        if finding != "dead" and alone and not was_ejected:
            return False
        self.failed_check = True
        self.last_error = error
        self.ejected_until = max(self.ejected_until or 0.0, now + hold_s)
        self.probing = False  # a probe that is under way decides nothing any more but by an answer
        if not was_ejected:
            self.forget()
        return not was_ejected

    def try_soon(self, now: float) -> None:
        """End the back-off: the next call is the probe."""
        if self.ejected_until is not None:
            self.ejected_until = min(self.ejected_until, now)

    def move_calls(self) -> int:
        """Have the calls in flight try elsewhere; how many there are."""
        moves = list(self.moves)
        for move in moves:
            move()
        return len(moves)

    def forget(self) -> None:
        """Learn anew what it can do: it may have been started again, or be another server."""
        self.capture = Capture()
        self.response_capture = ResponseCapture()
        self.prefix = PrefixSupport()


def request_headers(policy: ServedModel, endpoint: Endpoint) -> dict[str, str]:
    """The headers of a JSON request, with the policy's API key or else what the endpoint's URL itself carries."""
    headers = {"Content-Type": "application/json"}
    if policy.spec.api_key is not None:
        headers["Authorization"] = f"Bearer {policy.spec.api_key}"
    elif endpoint.url.basic is not None:
        headers["Authorization"] = endpoint.url.basic
    return headers
