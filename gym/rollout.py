"""The life of a rollout, as data.

Invariant: a rollout is in exactly one state; it changes state only along `TRANSITIONS`; the last four states are
final, and each rollout reaches one of them once. The Lua scripts under `gym/state/scripts` are the only writers.
"""

from dataclasses import dataclass, fields
from enum import StrEnum


class RolloutState(StrEnum):
    """State of a rollout. `queued` covers both the backlog and Celery's queue."""

    QUEUED = "queued"
    RUNNING = "running"
    JUDGING = "judging"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class Outcome(StrEnum):
    """The final states, as a result names them."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


TRANSITIONS: dict[RolloutState, frozenset[RolloutState]] = {
    RolloutState.QUEUED: frozenset(
        # queued → failed: attempts used up by workers that died while it waited inside them
        {RolloutState.RUNNING, RolloutState.CANCELLED, RolloutState.EXPIRED, RolloutState.FAILED}
    ),
    RolloutState.RUNNING: frozenset(
        # running → queued: another attempt, or handed back by a worker that drains
        {
            RolloutState.QUEUED,
            RolloutState.JUDGING,
            RolloutState.SUCCEEDED,
            RolloutState.FAILED,
            RolloutState.CANCELLED,
            RolloutState.EXPIRED,
        }
    ),
    RolloutState.JUDGING: frozenset(
        # an absent judge or a dead judge worker leaves it judging; judging → queued: Redis lost the pending verdict
        {
            RolloutState.QUEUED,
            RolloutState.SUCCEEDED,
            RolloutState.FAILED,
            RolloutState.CANCELLED,
            RolloutState.EXPIRED,
        }
    ),
    # out of a final state lead `requeue`, which takes the result back and counts a new attempt, and `rejudge`, which
    # keeps it until there is a new verdict
    RolloutState.SUCCEEDED: frozenset({RolloutState.JUDGING}),
    RolloutState.FAILED: frozenset({RolloutState.QUEUED, RolloutState.JUDGING}),
    RolloutState.CANCELLED: frozenset(),
    RolloutState.EXPIRED: frozenset({RolloutState.QUEUED}),
}


class StopReason(StrEnum):
    """Reason for the end of an episode."""

    COMPLETED = "completed"
    TRUNCATED = "truncated"  # a stepped environment ended it by a limit of its own
    MAX_TURNS = "max_turns"
    MAX_TOKENS = "max_tokens"
    CONTENT_FILTER = "content_filter"
    CONTEXT_OVERFLOW = "context_overflow"
    TIMEOUT = "timeout"
    STALLED = "stalled"
    EARLY_STOP = "early_stop"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """Number of a batch's rollouts in each state. `balanced` must hold at every moment."""

    submitted: int = 0
    queued: int = 0
    running: int = 0
    judging: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    expired: int = 0

    @property
    def ended(self) -> int:
        """Return the number of rollouts in a final state."""
        return self.succeeded + self.failed + self.cancelled + self.expired

    @property
    def balanced(self) -> bool:
        """Return whether every submitted rollout is accounted for."""
        return self.submitted == self.queued + self.running + self.judging + self.ended

    def as_dict(self) -> dict[str, int]:
        """Return the ledger as the API shows it."""
        return {name: getattr(self, name) for name in self.names()}

    @classmethod
    def names(cls) -> list[str]:
        """Return the field names: `submitted` and the states."""
        return [field.name for field in fields(cls)]
