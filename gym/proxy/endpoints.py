"""Which endpoint a call goes to: load, stickiness, ejection. Decisions only; the clock is passed in.

A new sticky key goes to the endpoint with the fewest calls in flight; ties are broken by a hash of key and URL, so that
processes that do not know of each other tend to agree. It stays there for the sake of the server's prefix cache and
moves when the endpoint is ejected, is taken off the list, or is much busier than the least busy one:
`in_flight > 2 * least + 8`.

An endpoint is ejected by `EJECT_AFTER` failures with no answer in between. After its back-off (1 s, doubled up to
30 s) it is half-open: one call is let through, and its outcome decides. One that still answers, if only with 500, is
ejected only where another is healthy: a server that fails one call in three is better than none.

Invariants: every `acquire` is followed by one `release`; a half-open endpoint has at most one probe under way; an
endpoint that is taken off the list gets no new calls, and those in flight on it end as they would have.
"""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from typing import Literal

from gym.jsontypes import JsonObject
from gym.proxy.capture import Capture
from gym.proxy.urls import EndpointUrl

EJECT_AFTER = 3
BACK_OFF_S = 1.0
BACK_OFF_MAX_S = 30.0
BUSIER_FACTOR = 2
BUSIER_SLACK = 8
STICKY_KEYS = 16_384

# erred: the server's own code failed (500); failed: nobody answered, or something before the server said so
Outcome = Literal["answered", "erred", "failed", "neutral"]
State = Literal["healthy", "ejected", "half_open", "probing"]


class Endpoint:
    """One base URL of a policy, with what is known of it in this process. Identity is what counts."""

    __slots__ = (
        "answered",
        "back_off_s",
        "capture",
        "ejected_until",
        "failed",
        "failures",
        "in_flight",
        "last_answer",
        "last_error",
        "probing",
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
        self.last_answer = float("-inf")
        self.last_error = ""
        self.answered = 0
        self.failed = 0
        self.capture = Capture()

    def state(self, now: float) -> State:
        """Whether calls may go to it."""
        if self.ejected_until is None:
            return "healthy"
        if self.probing:
            return "probing"
        return "ejected" if now < self.ejected_until else "half_open"

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
        }


class EndpointPool:
    """The endpoints of one policy."""

    def __init__(self, urls: Sequence[str], *, clock: Callable[[], float], sticky_keys: int = STICKY_KEYS) -> None:
        self._clock = clock
        self._sticky_keys = sticky_keys
        self._sticky: OrderedDict[str, Endpoint] = OrderedDict()
        self.endpoints: list[Endpoint] = []
        self.replace(urls)

    def replace(self, urls: Sequence[str]) -> None:
        """Take another list of base URLs; an endpoint that stays keeps its calls, its health and what it can do."""
        known = {endpoint.url: endpoint for endpoint in self.endpoints}
        wanted = dict.fromkeys(map(EndpointUrl.parse, urls))
        for url, endpoint in known.items():
            endpoint.retired = url not in wanted
            if endpoint.capture.level == "none":
                endpoint.capture = Capture()  # it may have been started anew with other options
        self.endpoints = [known.get(url) or Endpoint(url) for url in wanted]

    def acquire(self, sticky_key: str, *, avoid: Collection[Endpoint] = ()) -> Endpoint | None:
        """The endpoint for a call, counted as in flight; None while none is healthy or ready for a probe.

        Endpoints in `avoid`, which have just failed this call, are taken only where there is no other.
        """
        endpoint = self._choose(sticky_key, avoid)
        if endpoint is None:
            return None
        if endpoint.ejected_until is not None:
            endpoint.probing = True
        endpoint.in_flight += 1
        return endpoint

    def release(self, endpoint: Endpoint, outcome: Outcome, *, began: float, error: str = "") -> bool:
        """The call that began then is over; returns whether it got the endpoint ejected.

        `neutral` says nothing about the endpoint: the caller gave up. What began before an ejection and fails after it
        does not lengthen the back-off.
        """
        endpoint.in_flight -= 1
        now = self._clock()
        probed = endpoint.probing and began >= (endpoint.ejected_until or 0.0)
        if probed:
            endpoint.probing = False
        if outcome == "answered":
            endpoint.answered += 1
            endpoint.last_answer = now
            endpoint.failures = 0
            endpoint.ejected_until = None
            endpoint.back_off_s = 0.0
            endpoint.probing = False
            return False
        if outcome == "neutral":
            return False
        endpoint.failed += 1
        endpoint.failures += 1
        endpoint.last_error = error
        if outcome == "erred" and not any(e is not endpoint and e.ejected_until is None for e in self.endpoints):
            endpoint.ejected_until = None
            return False
        if not (probed or (endpoint.ejected_until is None and endpoint.failures >= EJECT_AFTER)):
            return False
        endpoint.back_off_s = min(BACK_OFF_MAX_S, endpoint.back_off_s * 2 or BACK_OFF_S)
        endpoint.ejected_until = now + endpoint.back_off_s
        endpoint.capture = Capture()  # what comes back may be another server
        return True

    def has_other(self, endpoint: Endpoint) -> bool:
        """Whether a call could go to another endpoint right now."""
        now = self._clock()
        return any(e is not endpoint and e.state(now) in ("healthy", "half_open") for e in self.endpoints)

    def reopens_in_s(self) -> float:
        """How long until an endpoint may be tried; 0 where one can be now or a probe is under way."""
        now = self._clock()
        times = [0.0 if e.ejected_until is None or e.probing else e.ejected_until - now for e in self.endpoints]
        return max(0.0, min(times, default=0.0))

    def reopen(self) -> None:
        """Somebody saw the policy at work, or wants to: what is ejected may be probed at once."""
        now = self._clock()
        for endpoint in self.endpoints:
            if endpoint.ejected_until is not None:
                endpoint.ejected_until = min(endpoint.ejected_until, now)

    def describe(self) -> list[JsonObject]:
        """Every endpoint, for people and metrics."""
        now = self._clock()
        return [endpoint.describe(now) for endpoint in self.endpoints]

    def _choose(self, sticky_key: str, avoid: Collection[Endpoint]) -> Endpoint | None:
        stuck = self._sticky.get(sticky_key)
        if stuck is not None and (stuck.retired or stuck.ejected_until is not None):
            del self._sticky[sticky_key]
            stuck = None
        if stuck is not None and stuck not in avoid:
            self._sticky.move_to_end(sticky_key)
            if stuck.in_flight <= BUSIER_SLACK:
                return stuck
        usable, probe = self._usable()
        if stuck is not None and stuck not in avoid:
            least = min(endpoint.in_flight for endpoint in usable)
            if stuck.in_flight <= BUSIER_FACTOR * least + BUSIER_SLACK:
                return stuck
        if probe is not None and probe not in avoid:
            return probe
        candidates = [endpoint for endpoint in usable if endpoint not in avoid] or usable
        if not candidates:
            return probe
        endpoint = _least_loaded(candidates, zlib.crc32(sticky_key.encode()))
        if stuck is None or stuck not in avoid:
            self._stick(sticky_key, endpoint)
        return endpoint

    def _usable(self) -> tuple[list[Endpoint], Endpoint | None]:
        """The healthy endpoints, and one that is ready for a probe."""
        if all(endpoint.ejected_until is None for endpoint in self.endpoints):
            return self.endpoints, None
        now = self._clock()
        healthy = [endpoint for endpoint in self.endpoints if endpoint.ejected_until is None]
        probe = next((endpoint for endpoint in self.endpoints if endpoint.state(now) == "half_open"), None)
        return healthy, probe

    def _stick(self, sticky_key: str, endpoint: Endpoint) -> None:
        self._sticky[sticky_key] = endpoint
        self._sticky.move_to_end(sticky_key)
        if len(self._sticky) > self._sticky_keys:
            self._sticky.popitem(last=False)


def _least_loaded(endpoints: Sequence[Endpoint], key: int) -> Endpoint:
    least = min(endpoint.in_flight for endpoint in endpoints)
    tied = [endpoint for endpoint in endpoints if endpoint.in_flight == least]
    if len(tied) == 1:
        return tied[0]
    return min(tied, key=lambda endpoint: ((key ^ endpoint.salt) * 2_654_435_761) & 0xFFFFFFFF)
