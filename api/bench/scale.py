"""`farm bench scale`: Redis, dispatcher and api needs of a large farm, extrapolated from one machine.

The model is linear: the cost of a rollout, and of a second of running it, do not depend on how many there are (`farm
bench backlog` and `w1` check this). Costs are CPU seconds, so that a busy machine distorts them little.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from api.bench.figures import Figure
from api.bench.lab import Lab, laboratory, weather_rows
from gym.state.redis.driver import Redis

NODES = 64
CONCURRENT = 64 * 1024
ROLLOUT_S = 120.0  # duration of a rollout in the large farm: the time of its model for its turns
SLOTS = 512  # of a worker process
HELD = 800
HELD_CALL_S = 20.0
HOLD_S = 8.0
ROLES = ("redis", "dispatcher", "api", "worker")


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """CPU seconds: of a rollout from submission to result, of a second of a running rollout, of an idle second."""

    rollout_s: Mapping[str, float]
    held_s: Mapping[str, float]
    idle_s: Mapping[str, float]
    redis_bytes: float  # of a finished rollout, with its row and result
    network_bytes: float  # of a rollout, in and out of Redis

    def cores(self, role: str, *, concurrent: float, rollout_s: float) -> float:
        """Return the cores that a role needs; work is linear, so for workers it is the sum over all."""
        rate = concurrent / rollout_s
        return self.idle_s[role] + rate * self.rollout_s[role] + concurrent * self.held_s[role]

    def most_concurrent(self, role: str, *, rollout_s: float) -> float:
        """Return how many rollouts may run before a role needs more than one core, the most for one process."""
        each = self.rollout_s[role] / rollout_s + self.held_s[role]
        return (1.0 - self.idle_s[role]) / each if each > 0 else float("inf")


def scale(repeats: int) -> list[Figure]:
    """A rollout's cost in Redis, dispatcher and api, and from it the needs of 64 nodes with 64k concurrent rollouts."""
    with laboratory() as lab, Redis.from_url(lab.farm.redis_url) as redis:
        return _figures(_measure(lab, redis, rollouts=1000 * repeats))


def _measure(lab: Lab, redis: Redis, *, rollouts: int) -> Costs:
    idle = _spent(lab, HOLD_S)
    before, memory = _traffic(redis), _memory(redis)
    with lab.cpu() as used:
        lab.follow(lab.submit(weather_rows(rollouts)))
    network = (_traffic(redis) - before) / rollouts
    size = (_memory(redis) - memory) / rollouts
    lab.model_behaves(latency_s=HELD_CALL_S)
    try:
        batch_id = lab.submit(weather_rows(HELD))
        _wait_until_running(lab, batch_id)
        held = _spent(lab, HOLD_S)
    finally:
        lab.model_behaves(latency_s=0.0)
    lab.http.delete(f"/v1/batches/{batch_id}").raise_for_status()
    return Costs(
        rollout_s={role: used.get(role, 0.0) / rollouts for role in ROLES},
        held_s={role: max(0.0, held[role] - idle[role]) / HELD for role in ROLES},
        idle_s=idle,
        redis_bytes=size,
        network_bytes=network,
    )


def _spent(lab: Lab, seconds: float) -> dict[str, float]:
    """Return the cores used by role, while no request is sent to the farm."""
    began = time.perf_counter()
    with lab.cpu() as used:
        time.sleep(seconds)
    took = time.perf_counter() - began
    return {role: used.get(role, 0.0) / took for role in ROLES}


def _wait_until_running(lab: Lab, batch_id: str) -> None:
    ends_at = time.monotonic() + HELD_CALL_S / 2
    while lab.http.get(f"/v1/batches/{batch_id}").raise_for_status().json()["ledger"]["running"] < HELD:
        if time.monotonic() > ends_at:
            raise RuntimeError(f"{HELD} rollouts did not start within {HELD_CALL_S / 2:g} s; is the machine busy?")
        time.sleep(0.2)


def _traffic(redis: Redis) -> float:
    found = redis.info("stats")
    return float(found["total_net_input_bytes"] + found["total_net_output_bytes"])


def _memory(redis: Redis) -> float:
    return float(redis.info("memory")["used_memory"])


def _figures(costs: Costs) -> list[Figure]:
    rate = CONCURRENT / ROLLOUT_S
    figures = [
        _figure("rollouts ended", rate, "1/s"),
        _figure("worker processes of 512 slots", CONCURRENT / SLOTS, ""),
        _figure("Redis, network", rate * costs.network_bytes / 1e6, "MB/s"),
        _figure("Redis, memory of an hour's light results", rate * 3600 * costs.redis_bytes / 1e9, "GB"),
    ]
    for role in ROLES:
        need = costs.cores(role, concurrent=CONCURRENT, rollout_s=ROLLOUT_S)
        figures += [
            _figure(f"{role}: cost of a rollout", costs.rollout_s[role] * 1000, "ms"),
            _figure(f"{role}: cost of a running one", costs.held_s[role] * 1e6, "us/s"),
            _figure(f"{role}: needed", need, "cores"),
        ]
    for role in ("redis", "dispatcher", "api"):
        most = costs.most_concurrent(role, rollout_s=ROLLOUT_S)
        figures.append(_figure(f"{role}: one core is enough for", most / 1000, "k at once"))
    return figures


def _figure(name: str, value: float, unit: str) -> Figure:
    return Figure(case="scale", name=name, unit=unit, repeats=(value,))
