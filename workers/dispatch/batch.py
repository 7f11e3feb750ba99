"""A batch that has not ended, as the dispatcher and its housekeeping know it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gym.state.batch_spec import read_spec
from gym.state.ledger.breakers import BreakerKey, policy_key
from gym.state.ledger.cancellation import StopCause, read_stop

COUNTERS = ("queued", "dispatched", "running", "judging", "cancel", "ended_at", "stops", "search", "publishing")
"""Fields of `meta` that `Batch.count` takes, with the counters of parked rollouts behind them."""


@dataclass(slots=True)
class ActiveBatch:
    """The dispatcher's view of a batch: its fixed properties, and the counters of this tick."""

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
    held: bool = False  # the whole batch is parked, since its policy keeps failing
    parked: int = 0  # queued rollouts that are parked because of their environments
    queued: int = 0
    dispatched: int = 0
    running: int = 0
    judging: int = 0
    stopping: StopCause | None = None  # the whole batch is being ended
    stops: int = 0  # large groups that are being stopped
    publishing: str | None = None  # the request whose rows go to the backlog
    search: str | None = None  # where the search for rollouts that nothing holds continues
    ended: bool = False

    def count(self, values: Sequence[bytes | None]) -> None:
        """Take over the counters of this tick. Raises a decode error for one that is not a number."""
        queued, dispatched, running, judging, flag, ended_at, stops, search, publishing, *parked = values
        self.queued, self.dispatched, self.running = int(queued or 0), int(dispatched or 0), int(running or 0)
        self.judging = int(judging or 0)
        self.parked = sum(int(number or 0) for number in parked)
        self.stopping = read_stop(flag)
        self.ended = ended_at is not None
        self.stops, self.search = int(stops or 0), search.decode() if search else None
        self.publishing = publishing.decode() if publishing else None


def read_batch(batch_id: str, values: Sequence[bytes | None]) -> ActiveBatch:
    """Return a batch from spec, run, priority, weight and time of creation. Raises a decode error.

    The options are checked as a worker checks them, so a batch that no worker could run is found here.
    """
    text, run, priority, weight, created = values[:5]
    spec = read_spec(text)
    limits = spec.limits
    created_at = int(created or b"")
    return ActiveBatch(
        batch_id=batch_id,
        run=(run or b"").decode(),
        priority=int(priority or b""),
        weight=float(weight or b""),
        created_at=created_at,
        max_attempts=limits.max_attempts,
        rollout_timeout_s=limits.rollout_timeout_s,
        judge_timeout_s=limits.judge_timeout_s,
        deadline_at=None if limits.deadline_s is None else created_at + int(limits.deadline_s * 1000),
        policy=policy_key(spec.policy),
    )
