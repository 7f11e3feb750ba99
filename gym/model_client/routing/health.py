"""Active health checks: find broken endpoints before calls are lost to them.

Endpoints are probed (`gym.model_client.routing.health_probes`). One that refuses connections is ejected at once. One
that is silent, or reports that it is ill, is ejected if another is healthy.

A server may pass its own health check and answer no call. So an endpoint with calls in flight and no sign of life is
asked for one token, and so is a healthy one as a control: if only the control answers, the endpoint hangs. If it stays
silent, its calls are moved to other live endpoints. Endpoints that failed calls have ejected for long are asked for a
token as well, so that they are tried soon after they recover.

All durations are multiples of `model.health_check_s`, which is also the time between checks of an endpoint.

Only recently used policies are checked, and only endpoints that have not just answered a call. A paused policy is not
checked. One task serves the whole process; a slow check delays no other.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import aiohttp

from gym.model_client.http.addresses import read_address
from gym.model_client.http.guarded import GuardedResolver
from gym.model_client.http.hosts import EVERY_HOST, HostRules
from gym.model_client.routing.endpoint import Endpoint
from gym.model_client.routing.endpoint_pool import EndpointPool
from gym.model_client.routing.health_probes import (
    Trouble,
    status_of_a_token,
    trouble_by_its_account,
    trouble_with_a_token,
)
from gym.model_client.routing.served_model import ModelSource, ServedModel, newest
from gym.model_client.settings import ModelSettings

LATELY_S = 60.0
MOST_PER_S = 32.0  # checks of one process
LONG_BACK_OFF_S = 2.0
# in multiples of health_check_s
TICK = 0.2
IDLE_TICK = 0.5  # while no endpoint has a call in flight that it could hang on
CONTROL = 1.0  # within which the control endpoint has to answer
SILENT = 1.5
HANGS = 4.0
QUIET = 1.5  # without a sign of life, after which an endpoint with calls in flight is probed; doubles while it answers
QUIET_MOST = 30.0
_LOG = logging.getLogger(__name__)

Served = tuple[ServedModel, EndpointPool]


@dataclass(slots=True)
class _Watch:
    """State of one endpoint between its checks."""

    due: float
    quiet_s: float  # after which it is probed
    under_way: bool = False
    hangs: bool = False  # only an answer to a token request shows that it has recovered
    passed_at: float = float("-inf")
    asked_at: float = float("-inf")


@dataclass(frozen=True, slots=True)
class _Patient:
    """Endpoint that is being checked."""

    record: ServedModel
    pool: EndpointPool
    endpoint: Endpoint
    watch: _Watch

    def is_suspect(self, now: float) -> bool:
        """Return whether the endpoint has been quiet for so long that it may hang."""
        endpoint, watch = self.endpoint, self.watch
        quiet = endpoint.ejected_until is None and endpoint.quiet_s(now) >= watch.quiet_s
        return quiet and self.pool.has_healthy_beside(endpoint)


class HealthChecks:
    """Health checks of one process; `run` is its task. `served` returns the policies and their endpoints."""

    def __init__(
        self,
        settings: ModelSettings,
        policies: ModelSource,
        served: Callable[[], Iterable[Served]],
        *,
        jitter: Callable[[], float],
        hosts: HostRules = EVERY_HOST,
    ) -> None:
        self._hosts = hosts
        self._allows = hosts.remembered()
        self._unit_s = self._interval_s = settings.health_check_s
        self._silent = Trouble("silent", f"gave a health check no answer within {SILENT * self._unit_s:g} s")
        self._policies = policies
        self._served = served
        self._jitter = jitter
        self._watches: WeakKeyDictionary[Endpoint, _Watch] = WeakKeyDictionary()
        self._checks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Check the endpoints until cancelled; checks in progress are cancelled too."""
        self._loop = asyncio.get_running_loop()
        connector = aiohttp.TCPConnector(limit=0, force_close=True, resolver=GuardedResolver(self._hosts))
        async with aiohttp.ClientSession(
            connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
        ) as self._session:
            try:
                while True:
                    busy = any(endpoint.in_flight for _, pool in self._served() for endpoint in pool.endpoints)
                    await asyncio.sleep((TICK if busy else IDLE_TICK) * self._unit_s)
                    self._look()
            finally:
                for check in self._checks:
                    check.cancel()
                await asyncio.gather(*self._checks, return_exceptions=True)

    def _look(self) -> None:
        """Start the checks that are due."""
        now = self._loop.time()
        lately = [(record, pool) for record, pool in self._served() if _used_lately(pool, now)]
        count = sum(len(pool.endpoints) for _, pool in lately)
        self._interval_s = interval_s = max(self._unit_s, count / MOST_PER_S)
        for record, pool in lately:
            current = newest(self._policies, record)
            if current is None or current.paused is not None:
                continue
            for endpoint in pool.endpoints:
                watch = self._watches.get(endpoint)
                if watch is None:
                    due = now + interval_s * (0.5 + self._jitter())
                    watch = self._watches[endpoint] = _Watch(due, QUIET * self._unit_s)
                if watch.under_way:
                    continue
                if endpoint.last_answer > watch.asked_at:
                    watch.quiet_s = QUIET * self._unit_s
                patient = _Patient(record, pool, endpoint, watch)
                suspect = patient.is_suspect(now)
                if not suspect and now < watch.due:
                    continue
                watch.due = now + interval_s * (0.75 + 0.5 * self._jitter())
                wanted = suspect or endpoint.ejected_until is not None or now - endpoint.heard_at > interval_s
                if wanted and self._may_ask(endpoint):
                    self._start(patient, suspect=suspect)

    def _may_ask(self, endpoint: Endpoint) -> bool:
        """Return whether an endpoint given by its IP address may be called; names are checked when resolved."""
        host = endpoint.url.chat.raw_host or ""
        return read_address(host) is None or self._allows(host, host)

    def _start(self, patient: _Patient, *, suspect: bool) -> None:
        patient.watch.under_way = True
        check = self._loop.create_task(self._check(patient, suspect=suspect), name="health check")
        self._checks.add(check)

        def done(check: asyncio.Task[None]) -> None:
            self._checks.discard(check)
            patient.watch.under_way = False
            if not check.cancelled() and (error := check.exception()) is not None:
                _LOG.error("a health check failed", exc_info=error, extra={"action": "health_check_internal"})

        check.add_done_callback(done)

    async def _check(self, patient: _Patient, *, suspect: bool) -> None:
        watch, began = patient.watch, self._loop.time()
        asks = suspect or watch.hangs
        look = trouble_with_a_token if asks else trouble_by_its_account
        question = self._loop.create_task(look(self._session, patient.record, patient.endpoint))
        control = self._loop.create_task(self._control(patient)) if suspect else None
        try:
            await asyncio.wait({question}, timeout=SILENT * self._unit_s)
            if asks:
                watch.asked_at, watch.quiet_s = began, min(QUIET_MOST * self._unit_s, watch.quiet_s * 2)
            if not question.done():
                if control is not None and not (control.done() and control.result()):
                    return  # the control does not answer either
                watch.hangs = asks
                self._failed(patient, self._silent, began)
                await asyncio.wait({question}, timeout=(HANGS - SILENT) * self._unit_s)
            if not question.done():
                self._move_calls(patient, began)
            elif (trouble := question.result()) is not None:
                self._failed(patient, trouble, began)
            else:
                await self._passed(patient, asked=asks)
        finally:
            for task in (question, control):
                if task is not None:
                    task.cancel()

    async def _control(self, patient: _Patient) -> bool:
        """Return whether another endpoint answers a token request within `CONTROL`."""
        others = [e for e in patient.pool.endpoints if e is not patient.endpoint and e.ejected_until is None]
        if not others:
            return False
        other = max(others, key=lambda other: other.heard_at)
        return await self._status(patient.record, other, within=CONTROL) is not None

    async def _status(self, record: ServedModel, endpoint: Endpoint, *, within: float) -> int | None:
        """Return the status that a request for one token is answered with, or None."""
        try:
            async with asyncio.timeout(within * self._unit_s):
                return await status_of_a_token(self._session, record, endpoint)
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return None

    async def _passed(self, patient: _Patient, *, asked: bool) -> None:
        pool, endpoint, watch = patient.pool, patient.endpoint, patient.watch
        watch.hangs = False
        watch.passed_at = self._loop.time()
        if pool.passed_check(endpoint, asked=asked):
            _LOG.info(
                "%s %s: %s is back",
                patient.record.kind,
                patient.record.name,
                endpoint.url.shown,
                extra={"action": "endpoint_back"},
            )
        elif (
            endpoint.ejected_until is not None
            and endpoint.ejected_until - watch.passed_at > LONG_BACK_OFF_S
            and await self._status(patient.record, endpoint, within=HANGS) == 200
        ):
            pool.try_soon(endpoint)

    def _failed(self, patient: _Patient, trouble: Trouble, began: float) -> None:
        hold_s = 2 * self._interval_s + HANGS * self._unit_s  # until the next check is over
        if patient.pool.failed_check(patient.endpoint, trouble.finding, began=began, hold_s=hold_s, error=trouble.text):
            _LOG.warning(
                "%s %s: %s ejected: %s",
                patient.record.kind,
                patient.record.name,
                patient.endpoint.url.shown,
                trouble.text,
                extra={"action": "endpoint_ejected"},
            )

    def _move_calls(self, patient: _Patient, began: float) -> None:
        """Move the calls of an endpoint ejected for silence to other endpoints, if one of those is alive."""
        pool, endpoint = patient.pool, patient.endpoint
        if endpoint.ejected_until is None:
            return
        others = [other for other in pool.endpoints if other is not endpoint and other.ejected_until is None]
        if not any(max(other.heard_at, self._passed_at(other)) >= began for other in others):
            return
        if count := endpoint.move_calls():
            _LOG.warning(
                "%s %s: %d calls leave %s, which hangs",
                patient.record.kind,
                patient.record.name,
                count,
                endpoint.url.shown,
                extra={"action": "calls_moved"},
            )

    def _passed_at(self, endpoint: Endpoint) -> float:
        watch = self._watches.get(endpoint)
        return watch.passed_at if watch is not None else float("-inf")


def _used_lately(pool: EndpointPool, now: float) -> bool:
    return now - pool.last_used < LATELY_S or any(endpoint.in_flight for endpoint in pool.endpoints)
