"""Prometheus metrics: the farm's state in Redis at the time of the scrape, and this process's own requests.

There are no globals, so several apps can run in one process.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client import Counter as PrometheusCounter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.services import COUNTERS, active_counters
from gym.rollout import Outcome
from gym.state.alarms import Alarms
from gym.state.leases import Leases, WorkerStatus
from gym.state.ledger.breakers import BreakerKey
from gym.state.ledger.ends import read_ends
from gym.state.redis.driver import RedisError
from gym.state.redis.store import Store
from gym.state.redis.unreadable import printable, read_or_none

UNMATCHED = "unmatched"
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class FarmNumbers:
    """State of the farm at one moment; `up` is False if Redis did not answer."""

    up: bool
    active_batches: int = 0
    states: dict[str, int] = field(default_factory=dict)
    breakers: list[BreakerKey] = field(default_factory=list)
    ends: Counter[str] = field(default_factory=Counter)  # by the names of `gym.state.ledger.ends`
    totals: dict[str, float] = field(default_factory=dict)
    workers: int = 0
    slots: int = 0
    hung: int = 0
    dispatcher: bool = False
    alarms: dict[str, int] = field(default_factory=dict)  # active ones, by kind


async def read_farm(store: Store, leases: Leases) -> FarmNumbers:
    """Read the current state of the farm."""
    try:
        batches, breakers = await active_counters(store)
        ends = await read_ends(store, dict(batches))
        totals = await store.redis.hgetall(store.keys.totals)
        alive = _alive(await leases.workers())
        dispatcher = await leases.dispatcher()
        standing = await Alarms(store).standing()
    except RedisError as error:
        _LOG.warning(
            "Redis could not be read for the metrics: %s", type(error).__name__, extra={"action": "redis_unavailable"}
        )
        return FarmNumbers(up=False)
    states = {name: sum(counters[name] for _, counters in batches) for name in (*COUNTERS, "parked")}
    return FarmNumbers(
        up=True,
        active_batches=len(batches),
        states=states,
        breakers=[breaker.key for breaker in breakers if breaker.open],
        ends=ends,
        totals=_totals(totals),
        workers=len(alive),
        slots=sum(worker.slots for worker in alive),
        hung=sum(worker.count("hung") for worker in alive),
        dispatcher=dispatcher is not None,
        alarms=Counter(str(alarm["kind"]) for alarm in standing.values()),
    )


def _totals(stored: dict[bytes, bytes]) -> dict[str, float]:
    found = {}
    for name, text in stored.items():
        value = read_or_none("total", name, float, text)
        if value is not None:
            found[printable(name)] = value
    return found


def _alive(workers: Iterable[WorkerStatus]) -> list[WorkerStatus]:
    return [worker for worker in workers if worker.lease_ends_in_s > 0 and worker.role == "worker"]


class _Snapshot(Collector):
    """Collector of numbers that were read before."""

    def __init__(self, farm: FarmNumbers) -> None:
        self._farm = farm

    def collect(self) -> Iterable[Metric]:
        farm = self._farm
        yield GaugeMetricFamily("farm_redis_up", "Whether Redis answered this scrape.", value=farm.up)
        if not farm.up:
            return
        states = GaugeMetricFamily(
            "farm_rollouts_active",
            "Rollouts of active batches; dispatched ones are also counted as queued, parked ones "
            "also as queued or judging.",
            labels=["state"],
        )
        for state, number in farm.states.items():
            states.add_metric([state], number)
        yield states
        breakers = GaugeMetricFamily(
            "farm_breaker_open",
            "Policies, environments and judges with an open circuit breaker, whose rollouts are parked.",
            labels=["kind", "name"],
        )
        for key in farm.breakers:
            breakers.add_metric([key.kind, key.name], 1)
        yield breakers
        yield from _ends(farm.ends)
        events = CounterMetricFamily("farm_events", "Other events of rollouts.", labels=["event"])
        alarms = CounterMetricFamily("farm_alarms", "Alarms that were raised.", labels=["kind"])
        for name, value in sorted(farm.totals.items()):
            kind, _, outcome = name.partition(":")
            if kind == "alarm":
                alarms.add_metric([outcome], value)
            elif kind != "rollouts":  # alarm of an earlier release
                events.add_metric([name], value)
        yield events
        yield alarms
        standing = GaugeMetricFamily("farm_alarms_standing", "Alarms that are active now.", labels=["kind"])
        for kind, number in sorted(farm.alarms.items()):
            standing.add_metric([kind], number)
        yield standing
        yield GaugeMetricFamily("farm_batches_active", "Batches that have not ended.", value=farm.active_batches)
        yield GaugeMetricFamily("farm_workers", "Worker processes with a lease.", value=farm.workers)
        yield GaugeMetricFamily("farm_slots", "Rollouts that the workers can run at the same time.", value=farm.slots)
        yield GaugeMetricFamily(
            "farm_environment_calls_hung",
            "Environment calls that outlast their rollout.",
            value=farm.hung,
        )
        yield GaugeMetricFamily("farm_dispatcher_up", "Whether a dispatcher is the leader.", value=farm.dispatcher)


def _ends(ends: Counter[str]) -> Iterable[Metric]:
    ended = CounterMetricFamily(
        "farm_rollouts",
        "Rollouts that ended; a rollout that ran or was judged again counts again.",
        labels=["outcome"],
    )
    again = CounterMetricFamily(
        "farm_rollouts_taken_back", "Outcomes that a requeue or a rejudging took back.", labels=["outcome"]
    )
    for outcome in Outcome:
        ended.add_metric([outcome], ends[outcome])
        again.add_metric([outcome], ends[f"again|{outcome}"])
    yield ended
    yield again


class HttpMetrics:
    """Counters of this process's requests, by method, route and status."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = PrometheusCounter(
            "farm_http_requests", "Requests answered.", ["method", "route", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "farm_http_request_seconds",
            "Seconds from the request to the start of its response.",
            ["method", "route"],
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
            registry=self.registry,
        )

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a response."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)


class MeasureRequests:
    """ASGI middleware that feeds `HttpMetrics`."""

    def __init__(self, app: ASGIApp, metrics: HttpMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Measure one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()

        async def measured_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                # route templates only: a path that the client chose must not become a label
                route = getattr(scope.get("route"), "path", UNMATCHED)
                method = scope["method"] if scope["method"] in _METHODS else "OTHER"
                self._metrics.observe(method, route, message["status"], time.perf_counter() - began)
            await send(message)

        await self._app(scope, receive, measured_send)


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def exposition(http: HttpMetrics, farm: FarmNumbers) -> bytes:
    """Return the text of a scrape."""
    snapshot = CollectorRegistry()
    snapshot.register(_Snapshot(farm))
    return generate_latest(snapshot) + generate_latest(http.registry)
