"""Active health checks: what no call is needed to find out, and no call should be lost over.

A check is `GET /health`, or `/v1/models` where a server has no such path, each on a connection of its own. Any answer
below 500 passes. An endpoint that nobody listens on is out at once; one that is silent for `SILENT_S`, or says that it
is ill, is out where another is healthy.

A server may be well by its own account and answer no call. So one that has calls in flight and gives no sign of life is
asked for one token, and a healthy one beside it too: if only that one answers, it hangs. The calls in flight on what is
silent still after `HANGS_S` are tried elsewhere. What calls have ejected for long is asked for a token as well, so that
it is tried again soon after it is well.

Only policies used lately are looked at, and of their endpoints those that have not answered a call just now. Nothing is
asked of a policy that is paused. One task for all of a process; a check that waits holds no other up.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import aiohttp
import orjson

from gym.config import ModelSettings
from gym.proxy.endpoint import Endpoint, Finding
from gym.proxy.endpoints import EndpointPool
from gym.proxy.forward import request_headers
from gym.proxy.policies import PolicyRecord, PolicySource, newest

TICK_S = 0.2
LATELY_S = 60.0
SILENT_S = 1.5
CONTROL_S = 1.0  # within which another endpoint has to answer the same question
HANGS_S = 4.0
QUIET_S = 1.5  # without a sign of life, after which an endpoint with calls in flight is asked; doubles while it answers
QUIET_MAX_S = 30.0
LONG_S = 2.0  # a back-off worth a question
MOST_PER_S = 32.0  # checks of one process
_NO_SUCH_PATH = frozenset({404, 405, 501})
_LOG = logging.getLogger(__name__)

Served = tuple[PolicyRecord, EndpointPool]


@dataclass(frozen=True, slots=True)
class _Trouble:
    """What a check found."""

    finding: Finding
    text: str


_SILENT = _Trouble("silent", f"gave a health check no answer within {SILENT_S:g} s")


@dataclass(slots=True)
class _Watch:
    """What is remembered of one endpoint between its checks."""

    due: float
    under_way: bool = False
    by_models: bool = False  # it has no /health
    hangs: bool = False  # only an answer to a question shows that it is well
    passed_at: float = float("-inf")
    asked_at: float = float("-inf")
    quiet_s: float = QUIET_S


@dataclass(frozen=True, slots=True)
class _Patient:
    """An endpoint under examination."""

    record: PolicyRecord
    pool: EndpointPool
    endpoint: Endpoint
    watch: _Watch

    def is_suspect(self, now: float) -> bool:
        """Whether it has been quiet for so long that it may hang."""
        endpoint, watch = self.endpoint, self.watch
        if endpoint.last_answer > watch.asked_at:
            watch.quiet_s = QUIET_S
        quiet = endpoint.ejected_until is None and endpoint.quiet_s(now) >= watch.quiet_s
        return quiet and self.pool.has_healthy_beside(endpoint)


class HealthChecks:
    """The checks of one process; `run` is its task. `served` gives the policies and their endpoints."""

    def __init__(
        self,
        settings: ModelSettings,
        policies: PolicySource,
        served: Callable[[], Iterable[Served]],
        *,
        jitter: Callable[[], float],
    ) -> None:
        self._interval_s = settings.health_check_s
        self._policies = policies
        self._served = served
        self._jitter = jitter
        self._watches: WeakKeyDictionary[Endpoint, _Watch] = WeakKeyDictionary()
        self._checks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Look at the endpoints until cancelled; the checks under way end with it."""
        self._loop = asyncio.get_running_loop()
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as self._session:
            try:
                while True:
                    await asyncio.sleep(TICK_S)
                    self._look()
            finally:
                for check in self._checks:
                    check.cancel()
                await asyncio.gather(*self._checks, return_exceptions=True)

    def _look(self) -> None:
        """Start the checks that are due."""
        now = self._loop.time()
        lately = [(record, pool) for record, pool in self._served() if _used_lately(pool, now)]
        interval_s = max(self._interval_s, sum(len(pool.endpoints) for _, pool in lately) / MOST_PER_S)
        for record, pool in lately:
            current = newest(self._policies, record)
            if current is None or current.paused is not None:
                continue
            for endpoint in pool.endpoints:
                watch = self._watches.get(endpoint)
                if watch is None:
                    watch = self._watches[endpoint] = _Watch(now + interval_s * (0.5 + self._jitter()))
                if watch.under_way:
                    continue
                patient = _Patient(record, pool, endpoint, watch)
                suspect = patient.is_suspect(now)
                if not suspect and now < watch.due:
                    continue
                watch.due = now + interval_s * (0.75 + 0.5 * self._jitter())
                if suspect or endpoint.ejected_until is not None or now - endpoint.heard_at > interval_s:
                    self._start(patient, suspect=suspect)

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
        question = self._loop.create_task(
            self._question(patient.record, patient.endpoint) if asks else self._visit(patient)
        )
        control = self._loop.create_task(self._control(patient)) if suspect else None
        try:
            await asyncio.wait({question}, timeout=SILENT_S)
            if asks:
                watch.asked_at, watch.quiet_s = began, min(QUIET_MAX_S, watch.quiet_s * 2)
            if not question.done():
                if control is not None and not (control.done() and control.result()):
                    return  # the others answer as little
                watch.hangs = asks
                self._failed(patient, _SILENT, began)
                await asyncio.wait({question}, timeout=HANGS_S - SILENT_S)
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

    async def _visit(self, patient: _Patient) -> _Trouble | None:
        """What is wrong with an endpoint by its own account; waits for ever where it is silent."""
        watch, url = patient.watch, patient.endpoint.url
        try:
            async with self._session.get(
                url.models if watch.by_models else url.health,
                headers=request_headers(patient.record, patient.endpoint),
                allow_redirects=False,
            ) as response:
                status = response.status
        except aiohttp.ClientError as error:
            return _trouble(error)
        if status in _NO_SUCH_PATH:
            if watch.by_models:
                return None
            watch.by_models = True
            return await self._visit(patient)
        return _Trouble("ill", f"answers {status} to a health check") if status >= 500 else None

    async def _question(self, record: PolicyRecord, endpoint: Endpoint) -> _Trouble | None:
        """What is wrong with an endpoint when it is asked for one token; an answer of any kind is one."""
        try:
            await self._status(record, endpoint)
        except aiohttp.ClientError as error:
            return _trouble(error)
        return None

    async def _control(self, patient: _Patient) -> bool:
        """Whether another endpoint answers the same question, and soon."""
        others = [e for e in patient.pool.endpoints if e is not patient.endpoint and e.ejected_until is None]
        if not others:
            return False
        try:
            async with asyncio.timeout(CONTROL_S):
                await self._status(patient.record, max(others, key=lambda other: other.heard_at))
        except (aiohttp.ClientError, TimeoutError):
            return False
        return True

    async def _status(self, record: PolicyRecord, endpoint: Endpoint) -> int:
        body = {"model": record.spec.model, "messages": [{"role": "user", "content": "."}], "max_tokens": 1}
        async with self._session.post(
            endpoint.url.chat,
            data=orjson.dumps(body),
            headers=request_headers(record, endpoint) | {"x-request-id": "farm-health-check"},
            allow_redirects=False,
        ) as response:
            return response.status

    async def _passed(self, patient: _Patient, *, asked: bool) -> None:
        pool, endpoint, watch = patient.pool, patient.endpoint, patient.watch
        watch.hangs = False
        watch.passed_at = self._loop.time()
        if pool.passed_check(endpoint, asked=asked):
            _LOG.info(
                "policy %s: %s is back", patient.record.name, endpoint.url.shown, extra={"action": "endpoint_back"}
            )
        elif endpoint.ejected_until is not None and endpoint.ejected_until - watch.passed_at > LONG_S:
            try:
                async with asyncio.timeout(HANGS_S):
                    well = await self._status(patient.record, endpoint) == 200
            except (aiohttp.ClientError, TimeoutError):
                return
            if well:
                pool.try_soon(endpoint)

    def _failed(self, patient: _Patient, trouble: _Trouble, began: float) -> None:
        hold_s = 2 * self._interval_s + HANGS_S  # until the next check has had its say
        if patient.pool.failed_check(patient.endpoint, trouble.finding, began=began, hold_s=hold_s, error=trouble.text):
            _LOG.warning(
                "policy %s: %s ejected: %s",
                patient.record.name,
                patient.endpoint.url.shown,
                trouble.text,
                extra={"action": "endpoint_ejected"},
            )

    def _move_calls(self, patient: _Patient, began: float) -> None:
        """Have the calls of an endpoint that has been ejected for silence tried elsewhere, if anybody lives there."""
        pool, endpoint = patient.pool, patient.endpoint
        if endpoint.ejected_until is None:
            return
        others = [other for other in pool.endpoints if other is not endpoint and other.ejected_until is None]
        if not any(max(other.heard_at, self._passed_at(other)) >= began for other in others):
            return
        if count := endpoint.move_calls():
            _LOG.warning(
                "policy %s: %d calls leave %s, which hangs",
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


def _trouble(error: aiohttp.ClientError) -> _Trouble:
    """A refused connection is the end of a process; anything else may be the network's."""
    refused = isinstance(getattr(error, "os_error", None), ConnectionRefusedError)
    text = str(error) or type(error).__name__
    return _Trouble("dead" if refused else "ill", f"fails a health check: {text}")
