"""Order of dispatch: by priority, then weighted fair share between runs, then age. Pure.

Fair share is start-time fair queueing: each run has a virtual time that grows by its rollouts divided by its weight,
and the run that is furthest behind goes next. A run that comes, or comes back, starts where the others would be without
their rollouts in flight. It has no claim for the past, and need not wait for runs that filled all slots before.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

IDLE_GAP_S = 0.005
BUSY_GAP_S = 0.05
MUCH_AT_WORK = 64  # rollouts


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingBatch:
    """A batch with a backlog, and the number of its rollouts in flight."""

    batch_id: str
    run: str
    priority: int
    weight: float
    created_at: int
    backlog: int
    in_flight: int = 0


@dataclass(frozen=True, slots=True)
class TakePlan:
    """Numbers of rollouts to take from each batch, in order, and the runs' virtual times afterwards."""

    takes: list[tuple[str, int]]
    virtual_times: dict[str, float]


def shares(batches: Sequence[WaitingBatch], *, slots: int) -> dict[str, int]:
    """Return by run the number of rollouts that it lacks to its fair share of the slots.

    Rollouts within the share overtake those that wait in Celery, of runs that filled the slots before. Only the highest
    priority has shares, and a run with no other to share with has none; `batches` are all that have a backlog or
    rollouts in flight.
    """
    highest = max((batch.priority for batch in batches), default=0)
    weights, in_flight = _by_run([batch for batch in batches if batch.priority == highest])
    if len({(batch.run, batch.priority) for batch in batches}) < 2:
        return {}
    total = sum(weights.values())
    return {run: int(slots * weight / total) - in_flight[run] for run, weight in weights.items()}


def tick_gap_s(at_work: int) -> float:
    """Return the seconds from one look at the backlog to the next.

    Few while few rollouts are at work and a caller waits for them; more while many end all the time, since a look
    costs as much as a few rollouts.
    """
    return min(BUSY_GAP_S, max(IDLE_GAP_S, BUSY_GAP_S * at_work / MUCH_AT_WORK))


def slice_size(waiting: Sequence[WaitingBatch], *, room: int, workers: int, most: int) -> int:
    """Return the number of rollouts in one job: few when there is little to do, so that it spreads over the workers.

    Rollouts with the workers count, too: the few that end between two ticks of busy workers are not divided further,
    since a job costs as much as a few rollouts.
    """
    work = min(room, sum(batch.backlog for batch in waiting)) + sum(batch.in_flight for batch in waiting)
    return max(1, min(most, work // max(1, 4 * workers)))


def plan(
    waiting: Sequence[WaitingBatch],
    *,
    room: int,
    slice_size: int,
    virtual_times: Mapping[str, float],
    most: Mapping[str, int] | None = None,
) -> TakePlan:
    """Divide `room` rollouts in slices; a run gets at most its value in `most`, if given.

    Virtual times of runs that are not waiting are forgotten.
    """
    takes: list[tuple[str, int]] = []
    active = [batch for batch in waiting if batch.backlog > 0]
    weights, in_flight = _by_run(waiting)
    ahead = {batch.run: in_flight[batch.run] / weights[batch.run] for batch in active}
    left = {run: room if most is None else most.get(run, 0) for run in ahead}
    known = [virtual_times[run] - ahead[run] for run in ahead if run in virtual_times]
    floor = min(known, default=0.0)
    times = {run: virtual_times.get(run, floor + held) for run, held in ahead.items()}
    for priority in sorted({batch.priority for batch in active}, reverse=True):
        if room <= 0:
            break
        room = _share([batch for batch in active if batch.priority == priority], room, slice_size, times, takes, left)
    return TakePlan(takes, times)


def _by_run(batches: Sequence[WaitingBatch]) -> tuple[dict[str, float], Counter[str]]:
    """Return each run's weight, the largest of its batches, and its number of rollouts in flight."""
    weights: dict[str, float] = {}
    in_flight: Counter[str] = Counter()
    for batch in batches:
        weights[batch.run] = max(weights.get(batch.run, 0.0), batch.weight)
        in_flight[batch.run] += batch.in_flight
    return weights, in_flight


def _share(
    batches: list[WaitingBatch],
    room: int,
    slice_size: int,
    times: dict[str, float],
    takes: list[tuple[str, int]],
    left: dict[str, int],
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
        given = min(slice_size, room, int(head[1]), left[run])
        if given <= 0:
            continue
        left[run] -= given
        takes.append((str(head[0]), given))
        room -= given
        times[run] += given / weights[run]
        head[1] = int(head[1]) - given
        if not head[1]:
            queues[run].pop(0)
        if queues[run]:
            heapq.heappush(heap, (times[run], run))
    return room
