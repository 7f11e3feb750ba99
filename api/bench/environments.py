"""Cost of a call of a tiny tool, and of a session, by place of the environment: the farm's classes without a farm.

Calls are made one at a time. CPU covers this process and all processes that it started: the environment's process, the
sandbox, the server.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from api.bench.figures import Figure, percentile
from api.bench.meter import CpuMeter
from api.bench.places import PLACES, HostingPlace, OpenPlace
from gym.sandbox.base import SandboxUnavailable


@dataclass(frozen=True, slots=True)
class TimeSpent:
    """Milliseconds: the wall time of each operation, and the CPU of all of them together."""

    walls: tuple[float, ...]
    cpu: float


@dataclass(frozen=True, slots=True)
class Cost:
    """Measured cost of calls and sessions in one place."""

    calls: TimeSpent
    sessions: TimeSpent


def environments(repeats: int, *, most: int = 2000) -> list[Figure]:
    """A call of a tiny tool, and `setup` with `close`: in process, thread, process, sandbox, over HTTP and WebSocket.

    One at a time, at most `most` of each; CPU of all processes together.
    """
    figures: list[Figure] = []
    for place in PLACES:
        try:
            costs = [asyncio.run(_measured(place, most)) for _ in range(repeats)]
        except SandboxUnavailable as error:
            figures.append(Figure(case="environments", name=place.name, unit="ms", repeats=(), missing=str(error)))
        else:
            figures += _figures(place, costs)
    return figures


def _figures(place: HostingPlace, costs: Sequence[Cost]) -> Iterator[Figure]:
    named = partial(Figure, case="environments", unit="ms")
    for what, spent in (
        ("call", [cost.calls for cost in costs]),
        ("setup + close", [cost.sessions for cost in costs]),
    ):
        if spent[0].walls:
            for name, share in (("p50", 0.5), ("p95", 0.95)):
                repeats = tuple(percentile(each.walls, share) for each in spent)
                yield named(name=f"{place.name}: {what}, {name}", repeats=repeats)
            yield named(name=f"{place.name}: {what}, CPU", repeats=tuple(each.cpu / len(each.walls) for each in spent))


async def _measured(place: HostingPlace, most: int) -> Cost:
    meter = CpuMeter()
    async with place.open() as opened:
        await _sessions(opened, meter, 1)  # warm up imports and connections
        calls = await _calls(opened, meter, min(place.calls, most))
        sessions = await _sessions(opened, meter, min(place.sessions, most))
    return Cost(calls, sessions)


async def _calls(opened: OpenPlace, meter: CpuMeter, count: int) -> TimeSpent:
    session = opened.session()
    walls: list[float] = []
    try:
        await session.setup()
        await opened.settled()
        for _ in range(min(count, 3)):
            await opened.call(session)
        before = meter.read_s()
        for _ in range(count):
            began = time.perf_counter()
            await opened.call(session)
            walls.append((time.perf_counter() - began) * 1000)
        used = meter.read_s() - before
    finally:
        await session.close()
    return TimeSpent(tuple(walls), used * 1000)


async def _sessions(opened: OpenPlace, meter: CpuMeter, count: int) -> TimeSpent:
    walls: list[float] = []
    await opened.settled()
    used = -meter.read_s()
    for _ in range(count):
        session = opened.session()
        began = time.perf_counter()
        try:
            await session.setup()
            wall = time.perf_counter() - began
            await opened.settled()
            if opened.ends:
                meter.read_s()
        finally:
            began = time.perf_counter()
            await session.close()
            wall += time.perf_counter() - began
        walls.append(wall * 1000)
    used += meter.read_s()
    return TimeSpent(tuple(walls), used * 1000)
