"""A batch that has not ended, as the dispatcher and its housekeeping know it."""

from __future__ import annotations

from dataclasses import dataclass

from gym.state.breakers import BreakerKey


@dataclass(slots=True)
class Batch:
    """A batch as the dispatcher knows it: what never changes, and the counters of this tick."""

    batch_id: str
    run: str
    priority: int
    weight: float
    created_at: int
    max_attempts: int
    deadline_at: int | None
    rollout_timeout_s: float
    judge_timeout_s: float
    policy: BreakerKey
    held: bool = False  # all of it is parked, since its policy keeps failing
    parked: int = 0  # of those queued, by their environments
    queued: int = 0
    dispatched: int = 0
    running: int = 0
    judging: int = 0
    stopping: bytes = b"0"  # 1 cancelled, 2 past its deadline
    stops: int = 0  # large groups that are being stopped
    publishing: str | None = None  # the request whose rows go to the backlog
    search: str | None = None  # from where on what nothing holds is searched for
    ended: bool = False
