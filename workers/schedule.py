"""Which rollouts go next: by priority, then weighted fair share between runs, then age. Pure.

Fair share is start-time fair queueing: each run has a virtual time that grows by what it was given over its weight,
and the run that is furthest behind goes next. A run that comes, or comes back, starts at the virtual time of the
others, so that it neither pays for the past nor is owed for it.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A batch with a backlog."""

    batch_id: str
    run: str
    priority: int
    weight: float
    created_at: int
    backlog: int


@dataclass(frozen=True, slots=True)
class Plan:
    """How many rollouts to take from each batch, in order, and the runs' virtual times afterwards."""

    takes: list[tuple[str, int]]
    virtual_times: dict[str, float]


def plan(waiting: Sequence[Waiting], *, room: int, slice_size: int, virtual_times: Mapping[str, float]) -> Plan:
    """Share `room` rollouts out in slices. Virtual times of runs that are not waiting are forgotten."""
    takes: list[tuple[str, int]] = []
    active = [batch for batch in waiting if batch.backlog > 0]
    known = [virtual_times[batch.run] for batch in active if batch.run in virtual_times]
    floor = min(known, default=0.0)
    times = {batch.run: max(floor, virtual_times.get(batch.run, floor)) for batch in active}
    for priority in sorted({batch.priority for batch in active}, reverse=True):
        if room <= 0:
            break
        room = _share([batch for batch in active if batch.priority == priority], room, slice_size, times, takes)
    return Plan(takes, times)


def _share(
    batches: list[Waiting], room: int, slice_size: int, times: dict[str, float], takes: list[tuple[str, int]]
) -> int:
    queues: dict[str, list[list[int | str]]] = {}
    weights: dict[str, float] = {}
    for batch in sorted(batches, key=lambda batch: (batch.created_at, batch.batch_id)):
        queues.setdefault(batch.run, []).append([batch.batch_id, batch.backlog])
        weights[batch.run] = max(weights.get(batch.run, 0.0), batch.weight)
    heap = [(times[run], run) for run in queues]
    heapq.heapify(heap)
    while heap and room > 0:
        _, run = heapq.heappop(heap)
        head = queues[run][0]
        given = min(slice_size, room, int(head[1]))
        takes.append((str(head[0]), given))
        room -= given
        times[run] += given / weights[run]
        head[1] = int(head[1]) - given
        if not head[1]:
            queues[run].pop(0)
        if queues[run]:
            heapq.heappush(heap, (times[run], run))
    return room
