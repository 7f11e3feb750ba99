"""The endpoints of a policy and the choice between them. Decisions are functions of values and of a clock passed in.

A new sticky key goes to the endpoint with the fewest calls in flight; ties are broken by a hash of key and URL, so that
processes that do not know of each other tend to agree. It stays there for the sake of the server's prefix cache and
moves when the endpoint is ejected (`gym.model_client.routing.endpoint` says when), is taken off the list, or is much
busier than the least busy one: `in_flight > 2 * least + 8`. While that endpoint is full (`max_concurrency`) or has just
failed the call, the call goes to another one, and the key stays.

Invariants: every `acquire` is followed by one `release`; an endpoint that is taken off the list gets no new calls, and
those in flight on it end as they would have; no endpoint has more calls in flight than `max_concurrency` unless that
was lowered; calls that wait for room get it in their order.
"""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence

from gym.jsontypes import JsonObject
from gym.model_client.http.urls import EndpointUrl
from gym.model_client.routing.call_queue import CallQueue, QueuePlace
from gym.model_client.routing.endpoint import Endpoint, Finding, Outcome
from gym.model_client.tokens.capture import Capture
from gym.model_client.tokens.prefix import PrefixSupport

BUSIER_FACTOR = 2
BUSIER_SLACK = 8
STICKY_KEYS = 16_384


class EndpointPool:
    """Endpoints of one policy. `line` is the queue of calls without room; `last_used` the time of the last call."""

    def __init__(
        self,
        urls: Sequence[str],
        *,
        clock: Callable[[], float],
        max_concurrency: int | None = None,
        sticky_keys: int = STICKY_KEYS,
    ) -> None:
        self._clock = clock
        self._sticky_keys = sticky_keys
        self._sticky: OrderedDict[str, Endpoint] = OrderedDict()
        self.endpoints: list[Endpoint] = []
        self.line = CallQueue()
        self.last_used = clock()
        self.replace(urls, max_concurrency=max_concurrency)

    def replace(self, urls: Sequence[str], *, max_concurrency: int | None = None) -> None:
        """Replace the list of base URLs; an endpoint that stays keeps its calls, health and capabilities."""
        self.max_concurrency = max_concurrency
        known = {endpoint.url: endpoint for endpoint in self.endpoints}
        wanted = dict.fromkeys(map(EndpointUrl.parse, urls))
        for url, endpoint in known.items():
            endpoint.retired = url not in wanted
            if endpoint.capture.level == "none":
                endpoint.capture = Capture()  # it may have been restarted with other options
            if endpoint.prefix.given_up:
                endpoint.prefix = PrefixSupport()
        self.endpoints = [known.get(url) or Endpoint(url) for url in wanted]
        self._wake()

    def acquire(
        self, sticky_key: str, *, avoid: Collection[Endpoint] = (), place: QueuePlace | None = None
    ) -> Endpoint | None:
        """Choose the endpoint for a call and count it as in flight; None if none is available and has room.

        Endpoints in `avoid`, which have just failed this call, are chosen only if there is no other. `place` is the
        call's place in the queue. Calls before it come first; a call without a place comes last.
        """
        self.last_used = self._clock()
        if self.line and not self.line.admits(place, self._room()):
            return None
        endpoint = self._choose(sticky_key, avoid)
        if endpoint is not None:
            endpoint.begin(self.last_used)
        return endpoint

    def release(self, endpoint: Endpoint, outcome: Outcome, *, began: float, error: str = "") -> bool:
        """Record the end of the call that began at `began`; return whether it ejected the endpoint.

        `neutral` says nothing about the endpoint: the caller gave up. A call that began before an ejection and fails
        after it does not lengthen the back-off.
        """
        alone = outcome == "erred" and not self.has_healthy_beside(endpoint)
        ejected = endpoint.end(outcome, began=began, now=self._clock(), alone=alone, error=error)
        self._wake()
        return ejected

    def passed_check(self, endpoint: Endpoint, *, asked: bool) -> bool:
        """Record a passed health check, by a token if `asked`; return whether that ends the ejection."""
        back = endpoint.pass_check(now=self._clock(), asked=asked)
        if back:
            self._wake()
        return back

    def failed_check(self, endpoint: Endpoint, finding: Finding, *, began: float, hold_s: float, error: str) -> bool:
        """Record a failed health check that began at `began`; return whether it ejected the endpoint, for `hold_s`."""
        alone = not self.has_healthy_beside(endpoint)
        return endpoint.fail_check(finding, began=began, now=self._clock(), hold_s=hold_s, alone=alone, error=error)

    def try_soon(self, endpoint: Endpoint) -> None:
        """End an endpoint's back-off: the next call is its probe."""
        endpoint.try_soon(self._clock())
        self._wake()

    def has_line(self) -> bool:
        """Return whether a call without an endpoint has to wait for room, not for a healthy endpoint."""
        if self.max_concurrency is None and not self.line:
            return False
        now = self._clock()
        return any(endpoint.state(now) in ("healthy", "half_open") for endpoint in self.endpoints)

    def leave_line(self, place: QueuePlace) -> None:
        """Remove the place of a call that has been sent or given up."""
        self.line.leave(place, room=self._room())

    def has_other(self, endpoint: Endpoint) -> bool:
        """Return whether a call could use another endpoint right now."""
        now = self._clock()
        return any(e is not endpoint and e.state(now) in ("healthy", "half_open") for e in self.endpoints)

    def has_healthy_beside(self, endpoint: Endpoint) -> bool:
        """Return whether another endpoint is healthy."""
        return any(other is not endpoint and other.ejected_until is None for other in self.endpoints)

    def reopens_in_s(self) -> float:
        """Return the seconds until an endpoint may be tried; 0 if one can be now or a probe is in progress."""
        now = self._clock()
        times = [0.0 if e.ejected_until is None or e.probing else e.ejected_until - now for e in self.endpoints]
        return max(0.0, min(times, default=0.0))

    def reopen(self) -> None:
        """Allow a probe of ejected endpoints at once."""
        for endpoint in self.endpoints:
            self.try_soon(endpoint)

    def describe(self) -> list[JsonObject]:
        """Describe every endpoint, for display and metrics."""
        now = self._clock()
        return [endpoint.describe(now) for endpoint in self.endpoints]

    def _choose(self, sticky_key: str, avoid: Collection[Endpoint]) -> Endpoint | None:
        home = self._sticky.get(sticky_key)
        if home is not None and (home.retired or home.ejected_until is not None):
            del self._sticky[sticky_key]
            home = None
        detour = home is not None and (home in avoid or not self._has_room(home))
        if home is not None and not detour:
            self._sticky.move_to_end(sticky_key)
            if home.in_flight <= BUSIER_SLACK:
                return home
        usable, probe = self._usable()
        if home is not None and not detour:
            least = min(endpoint.in_flight for endpoint in usable)
            if home.in_flight <= BUSIER_FACTOR * least + BUSIER_SLACK:
                return home
        if probe is not None and probe not in avoid:
            return probe
        candidates = [endpoint for endpoint in usable if endpoint not in avoid] or usable
        if not candidates:
            return probe
        endpoint = _least_loaded(candidates, zlib.crc32(sticky_key.encode()))
        if not detour:
            self._stick(sticky_key, endpoint)
        return endpoint

    def _usable(self) -> tuple[list[Endpoint], Endpoint | None]:
        """Return the healthy endpoints with room, and one with room that is ready for a probe."""
        endpoints = self.endpoints
        if self.max_concurrency is not None:
            endpoints = [endpoint for endpoint in endpoints if self._has_room(endpoint)]
        if all(endpoint.ejected_until is None for endpoint in endpoints):
            return endpoints, None
        now = self._clock()
        healthy = [endpoint for endpoint in endpoints if endpoint.ejected_until is None]
        probe = next((endpoint for endpoint in endpoints if endpoint.state(now) == "half_open"), None)
        return healthy, probe

    def _has_room(self, endpoint: Endpoint) -> bool:
        return self.max_concurrency is None or endpoint.in_flight < self.max_concurrency

    def _room(self) -> int:
        """Return the number of calls that may be sent now."""
        now = self._clock()
        room = 0
        for endpoint in self.endpoints:
            state = endpoint.state(now)
            if self.max_concurrency is None and state in ("healthy", "half_open"):
                return len(self.line)
            if state == "healthy":
                room += max(0, (self.max_concurrency or 0) - endpoint.in_flight)
            elif state == "half_open":
                room += self._has_room(endpoint)
        return room

    def _wake(self) -> None:
        if self.line:
            self.line.wake(self._room())

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
