"""Transitions of rollouts: taken by the dispatcher, claimed by workers, committed once.

A worker names a rollout by (member, attempt, token). The fencing token is given at the claim and grows, so no two
claims of a batch share one. A name that no longer matches belongs to a rollout that was cancelled, recovered, or
committed by another worker.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import orjson

from gym.errors import ErrorKind, Stage
from gym.ids import RolloutRef
from gym.state.ledger.unreadable_claims import ClaimedItem, readable_claims
from gym.state.redis.encodings import OUTCOME_LETTER, LiveState, live_or_none
from gym.state.redis.store import (
    ALONE,
    BOUNCE,
    CLAIM,
    COMMIT,
    PROBE,
    RECOVER,
    REFUND,
    RETRY,
    TAKE,
    Argument,
    ScriptCall,
    Store,
)

SUSPECT_AFTER = 2
LIVE_PER_STEP, STEP_PAUSE_S = 500, 0.002
"""Live rollouts that one script call looks at, and the pause for other clients before the next call."""


@dataclass(frozen=True, slots=True)
class TakenRollout:
    """A rollout that goes to Celery; `suspect` marks a suspected poison rollout, which must run alone."""

    environment: str
    member: str
    attempt: int
    suspect: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A rollout that this worker runs. `tries` are its failed attempts, JSON lines.

    `replay` are the model calls of this attempt before it was handed back (`gym.agents.replay`), mostly none.
    """

    batch_id: str
    member: str
    attempt: int
    token: str
    tries: bytes
    environment: str
    num_samples: int
    task_id: str
    published_at: int  # ms
    claimed_at: int  # ms
    row: bytes
    replay: bytes = b""


class ClaimedRollout(Protocol):
    """Name of a rollout that a worker or judge worker holds; implemented by `Claim` and `JudgeClaim`."""

    @property
    def batch_id(self) -> str: ...
    @property
    def member(self) -> str: ...
    @property
    def attempt(self) -> int: ...
    @property
    def token(self) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """Outcome of an attempt, with the numbers that it adds to its environment's sums."""

    outcome: str
    record: bytes
    trajectory: bytes
    usable: bool
    early_stop: int
    sums: dict[str, float]


@dataclass(frozen=True, slots=True)
class CommitResult:
    """Result of a commit: `verdict` is 1 committed, 2 committed before by this attempt, 0 fenced off."""

    verdict: int
    batch_ended: bool
    stopped: int


@dataclass(frozen=True, slots=True)
class RecoveryResult:
    """Counts of rollouts taken back from dead workers and a lossy broker."""

    requeued: int
    failed: int
    resent: int


class Rollouts:
    """The transitions, as dispatcher and workers call them."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def take(
        self, batch_id: str, most: int, *, parked: Sequence[str] = (), suspects: bool = True
    ) -> list[TakenRollout]:
        """Move up to `most` rollouts from the backlog to Celery, none of the `parked` environments.

        Suspects are taken only if `suspects` is set.
        """
        keys = self._store.keys.batch(batch_id).scripted()
        return _taken(await self._store.run(TAKE, keys, [most, int(suspects), *parked]))

    async def probe(
        self, batch_id: str, *, environment: str | None, seed: int, parked: Sequence[str]
    ) -> list[TakenRollout]:
        """Move one parked rollout to Celery, of a parked environment or of a batch that is parked as a whole."""
        keys = self._store.keys.batch(batch_id).scripted()
        return _taken(await self._store.run(PROBE, keys, [environment or "", seed, *parked]))

    async def claim(self, batch_id: str, worker: str, wanted: Sequence[tuple[str, int]]) -> list[Claim]:
        """Start (member, attempt) here; those that this worker may not start are left out.

        Repeated, as after a lost answer, it returns the same claims; the caller knows which of them it runs already. A
        rollout whose row cannot be read is ended as failed, `bad_row`.
        """
        args: list[str | int] = [worker]
        for member, attempt in wanted:
            args += [member, attempt]
        answer = await self._store.run(CLAIM, self._store.keys.batch(batch_id).scripted(), args)
        claimed_at = int(answer[0])
        rows = dict(zip(answer[-1][::2], answer[-1][1::2], strict=True))
        claimed = []
        for item in answer[1:-1]:
            member, attempt, token = item[:3]
            stored = rows.get(member.partition(b":")[0], b"")
            read = partial(_read_claim, batch_id, item, stored, claimed_at)
            claimed.append(ClaimedItem(member=member, attempt=attempt, token=token, read=read))
        return await readable_claims(self._store, batch_id, claimed, kind=ErrorKind.BAD_ROW, stage=Stage.SETUP)

    async def bounce(self, batch_id: str, unwanted: Sequence[tuple[str, int]]) -> int:
        """Give back (member, attempt) that were received and will not be started here; return their number."""
        args: list[str | int] = []
        for member, attempt in unwanted:
            args += [member, attempt]
        return int(await self._store.run(BOUNCE, self._store.keys.batch(batch_id).scripted(), args))

    def commit_call(self, claim: ClaimedRollout, commit: Commit) -> ScriptCall:
        """Return the script call that commits; its answer is read by `committed`."""
        args: list[str | bytes | int | float] = [
            claim.member,
            claim.attempt,
            claim.token,
            OUTCOME_LETTER[commit.outcome],
            commit.record,
            commit.trajectory,
            int(commit.usable),
            commit.early_stop,
            orjson.dumps(commit.sums),
        ]
        return ScriptCall(COMMIT, self._store.keys.batch(claim.batch_id).scripted(), args, joins=True)

    @staticmethod
    def committed(answer: Sequence[int]) -> CommitResult:
        """Read the answer to `commit_call`."""
        return CommitResult(answer[0], answer[1] == 1, answer[2])

    def retry_call(self, claim: Claim, error_line: bytes, delay_s: float, *, replay: bytes = b"") -> ScriptCall:
        """Return the script call that gives an attempt up for a later one; without an error line it is not used up.

        `replay` is stored for the next claim of the same attempt, if that was not used up or is refunded.
        """
        delay_ms = int(delay_s * 1000)
        args: list[str | bytes | int] = [claim.member, claim.attempt, claim.token, error_line, delay_ms, replay]
        return ScriptCall(RETRY, self._store.keys.batch(claim.batch_id).scripted(), args)

    def refund_call(self, batch_id: str, member: str, attempt: int, token: str) -> ScriptCall:
        """Return the script call that refunds the attempt that failed under this token, now or when it fails."""
        return ScriptCall(REFUND, self._store.keys.batch(batch_id).scripted(), [member, attempt, token])

    def alone_call(self, claim: Claim) -> ScriptCall:
        """Return the script call that marks a suspect as running alone; it answers 0 for a void claim."""
        return ScriptCall(
            ALONE, self._store.keys.batch(claim.batch_id).scripted(), [claim.member, claim.attempt, claim.token]
        )

    async def recover(
        self,
        batch_id: str,
        *,
        overdue_ms: int,
        max_attempts: int,
        dead_workers: Sequence[str],
        suspect_after: int = SUSPECT_AFTER,
    ) -> RecoveryResult:
        """Take back rollouts of dead workers, and jobs handed to Celery before `overdue_ms` (0 leaves them).

        A rollout present at `suspect_after` deaths is run alone from then on, and fails only if it dies alone. Bounded,
        repeatable steps.
        """
        keys = self._store.keys.batch(batch_id).scripted()
        found, cursor = [0, 0, 0], b"0"
        while True:
            step: list[Argument] = [overdue_ms, max_attempts, suspect_after, cursor, LIVE_PER_STEP, *dead_workers]
            *counts, _ended, cursor = await self._store.run(RECOVER, keys, step)
            found = [total + count for total, count in zip(found, counts, strict=True)]
            if cursor == b"0":
                return RecoveryResult(*found)
            await asyncio.sleep(STEP_PAUSE_S)

    async def still_mine(self, claims: Sequence[ClaimedRollout], worker: str | None = None) -> list[bool]:
        """Return whether each claim is valid; an invalid one was cancelled or given to another worker.

        With a `worker` it must be that one's: a Redis that lost its last writes may give a token out twice.
        """
        by_batch: dict[str, list[int]] = {}
        for number, claim in enumerate(claims):
            by_batch.setdefault(claim.batch_id, []).append(number)
        pipeline = self._store.redis.pipeline(transaction=False)
        for batch_id, numbers in by_batch.items():
            pipeline.hmget(self._store.keys.batch(batch_id).live, [claims[number].member for number in numbers])
        standing = [False] * len(claims)
        for numbers, values in zip(by_batch.values(), await pipeline.execute(), strict=True):
            for number, value in zip(numbers, values, strict=True):
                claim = claims[number]
                live = live_or_none(value)
                standing[number] = (
                    live is not None
                    and (live.attempt, live.token) == (claim.attempt, claim.token)
                    and (worker is None or live.is_held_by(worker))
                )
        return standing

    async def under_way(self, batch_id: str, wanted: Sequence[tuple[str, int]]) -> bool:
        """Return whether any of these (member, attempt) has been sent and has not ended."""
        values = await self._store.redis.hmget(self._store.keys.batch(batch_id).live, [member for member, _ in wanted])
        found = [live_or_none(value) for value in values]
        return any(
            live is not None and live.attempt == attempt for live, (_, attempt) in zip(found, wanted, strict=True)
        )

    async def running(self, rollout: RolloutRef, attempt: int) -> bool:
        """Return whether a worker runs this attempt now."""
        live = live_or_none(await self._store.redis.hget(self._store.keys.batch(rollout.batch_id).live, rollout.member))
        return live is not None and live.state is LiveState.RUNNING and live.attempt == attempt


def _taken(flat: Sequence[Any]) -> list[TakenRollout]:
    """Read the answer of `take` and `probe`."""
    entries = zip(flat[::4], flat[1::4], flat[2::4], flat[3::4], strict=True)
    return [
        TakenRollout(environment.decode(), member.decode(), int(attempt), bool(suspect))
        for environment, member, attempt, suspect in entries
    ]


def _read_claim(batch_id: str, item: Sequence[bytes], stored: bytes, claimed_at: int) -> Claim:
    """Return a claim. Raises a decode error."""
    member, attempt, token, tries, replay = item
    head, _, row = stored.partition(b"\n")
    samples, environment, published_at, task_id = head.decode().split(" ")
    return Claim(
        batch_id=batch_id,
        member=member.decode(),
        attempt=int(attempt),
        token=token.decode(),
        tries=tries,
        environment=environment,
        num_samples=int(samples),
        task_id=task_id,
        published_at=int(published_at),
        claimed_at=claimed_at,
        row=row,
        replay=replay,
    )
