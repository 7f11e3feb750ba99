"""Bar-separated values of the ledger, as typed values: the `live` and `done` entries of a rollout.

Invariant: no other module of Python takes these values apart. The scripts write them (`lib.lua`), and the table in
`gym.state.redis.keys` lists their parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from gym.rollout import Outcome, RolloutState
from gym.state.redis.unreadable import DECODE_ERRORS, printable

OUTCOME_LETTER: dict[str, str] = {
    Outcome.SUCCEEDED: "s",
    Outcome.FAILED: "f",
    Outcome.CANCELLED: "c",
    Outcome.EXPIRED: "e",
}


class LiveState(StrEnum):
    """Letter of a rollout that is neither in the backlog nor ended."""

    DISPATCHED = "d"
    RUNNING = "r"
    WAITING_FOR_JUDGE = "w"
    SENT_TO_JUDGE = "s"
    BEING_JUDGED = "j"

    @property
    def state(self) -> RolloutState:
        if self is LiveState.DISPATCHED:
            return RolloutState.QUEUED
        return RolloutState.RUNNING if self is LiveState.RUNNING else RolloutState.JUDGING


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveRollout:
    """A rollout that was sent to Celery and has not ended.

    `holder` is a worker, or `JUDGE/JUDGE_WORKER` while it is judging; None or empty until one claims it.
    """

    state: LiveState
    attempt: int
    token: str
    holder: str | None

    @property
    def judging(self) -> bool:
        """Return whether its conversation is over and it waits for a verdict."""
        return self.state.state is RolloutState.JUDGING

    def is_held_by(self, worker: str) -> bool:
        """Return whether this worker or judge worker has it."""
        holder = self.holder or ""
        return worker in (holder, holder.partition("/")[2])


def read_live(value: bytes | None) -> LiveRollout | None:
    """Return a `live` entry, `None` without one. Raises a decode error."""
    if not value:
        return None
    text = value.decode(errors="backslashreplace")
    state, attempt, token, _since, _environment, *holder = text.split("|", 5)
    if not attempt.isdecimal():
        raise ValueError(f"{attempt!r} is no attempt")
    return LiveRollout(state=LiveState(state), attempt=int(attempt), token=token, holder=holder[0] if holder else None)


def live_or_none(value: bytes | None) -> LiveRollout | None:
    """Return a `live` entry, `None` without one or if it is damaged."""
    try:
        return read_live(value)
    except DECODE_ERRORS:
        return None


def attempt_of(done: bytes | None) -> int | None:
    """Return the attempt of a `done` entry, `None` if it has none."""
    parts = (done or b"").split(b"|")
    return int(parts[1]) if len(parts) > 1 and parts[1].isdigit() else None


def log_id_of(done: bytes | None) -> str:
    """Return the log position of a `done` entry, an empty text without one."""
    return "" if done is None else printable(done).rpartition("|")[2]
