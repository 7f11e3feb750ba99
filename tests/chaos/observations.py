"""Records of a chaos run, as values. Times are seconds since the epoch, all of this machine's clock."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import orjson

from gym.rollout import Ledger
from tests.chaos.schedule import Kind
from tests.chaos.workload import Task

_CALL_ID = re.compile(r"(.+)-(\d+)-(\d+)(?:-r\d+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """A process that was killed."""

    at: float
    kind: Kind
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerSeen:
    """A ledger as an endpoint showed it; `at` is when it was asked for."""

    at: float
    source: str
    batch_id: str
    ledger: Ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSeen:
    """The counts of rollouts on their way, as /v1/queues or /metrics showed them."""

    at: float
    source: str
    counts: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """An unexpected HTTP answer."""

    at: float
    request: str
    status: int
    body: str


@dataclass(frozen=True, slots=True)
class Ended:
    """A result as the feed gave it."""

    task: Task
    rollout_id: str
    attempt: int
    outcome: str
    reward: float | None
    model_calls: int
    error: str = ""


@dataclass(frozen=True, slots=True)
class Taken:
    """Results that a consumer was handed out together."""

    rollout_ids: tuple[str, ...]
    acknowledged: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCall:
    """A call that reached the model server for a rollout."""

    at: float
    rollout_id: str
    attempt: int
    turn: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled:
    """A cancellation that the farm has acknowledged; `what` is a batch, or the group of a task in it.

    Nothing of it starts from then on; at `done_at` all of it had ended.
    """

    acknowledged_at: float
    batch_id: str
    group_id: str | None = None
    done_at: float | None = None

    def covers(self, rollout_id: str) -> bool:
        """Return whether a rollout is part of the cancellation."""
        return rollout_id.startswith(f"{self.group_id or self.batch_id}:")


@dataclass(frozen=True, slots=True)
class Outage:
    """A time during which workers could not have heard anything from Redis."""

    began: float
    ended: float


def read_model_calls(lines: Iterable[bytes]) -> list[ModelCall]:
    """The calls of workers in a mock model's log file; those of outside agents carry other ids and are left out.

    A line that was cut by a kill is skipped.
    """
    calls = []
    for line in lines:
        try:
            event = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        found = _CALL_ID.fullmatch(event["x_request_id"] or "") if event["event"] == "begin" else None
        if found:
            calls.append(
                ModelCall(at=event["at"], rollout_id=found[1], attempt=int(found[2]), turn=int(found[3]))
            )  # fmt: skip
    return calls
