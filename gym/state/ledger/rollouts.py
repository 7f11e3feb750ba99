"""Rollouts on their way: taken by the dispatcher, claimed by workers, committed once.

A worker names a rollout by (member, attempt, token); the token is given at the claim and grows, so no two claims of
a batch share one. What does not match any more was cancelled, recovered, or committed by somebody else.
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
from gym.state.ledger.encodings import OUTCOME_LETTER, LiveState, live_or_none
from gym.state.ledger.unreadable_claims import ClaimedItem, readable_claims
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
"""How much of what is live one script call looks at, and how long others have Redis before the next one."""


@dataclass(frozen=True, slots=True)
class TakenRollout:
    """A rollout that goes to Celery; `suspect` says that it must run alone."""

    environment: str
    member: str
    attempt: int
    suspect: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A rollout that this worker runs. `tries` are its failed attempts, JSON lines.

    `replay` are the model calls of this attempt from before it was handed back (`gym.agents.replay`), mostly none.
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
    """What names a rollout that a worker or a judge worker has: `Claim`, `gym.state.ledger.judging.JudgeClaim`."""

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
    """The outcome of an attempt, with the numbers that it adds to its environment's sums."""

    outcome: str
    record: bytes
    trajectory: bytes
    usable: bool
    early_stop: int
    sums: dict[str, float]


@dataclass(frozen=True, slots=True)
class CommitResult:
    """What a commit did: `verdict` is 1 committed, 2 was committed already by this attempt, 0 fenced off."""

    verdict: int
    batch_ended: bool
    stopped: int


@dataclass(frozen=True, slots=True)
class RecoveryResult:
    """What was taken back from dead workers and a lossy broker."""

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

        Suspects are taken only where they may go.
        """
        keys = self._store.keys.batch(batch_id).scripted()
        return _taken(await self._store.run(TAKE, keys, [most, int(suspects), *parked]))

    async def probe(
        self, batch_id: str, *, environment: str | None, seed: int, parked: Sequence[str]
    ) -> list[TakenRollout]:
        """Move one rollout to Celery although it is parked: of a parked environment, or where the whole batch is."""
        keys = self._store.keys.batch(batch_id).scripted()
        return _taken(await self._store.run(PROBE, keys, [environment or "", seed, *parked]))

    async def claim(self, batch_id: str, worker: str, wanted: Sequence[tuple[str, int]]) -> list[Claim]:
        """Start (member, attempt) here; those that are not ours to start are left out.

        Asked again, as after a lost answer, it gives the same claims; who asks knows which of them it runs already.
        One whose row cannot be read is ended as failed, `bad_row`.
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
        """Give (member, attempt) back that were received and will not be started here: how many that were."""
        args: list[str | int] = []
        for member, attempt in unwanted:
            args += [member, attempt]
        return int(await self._store.run(BOUNCE, self._store.keys.batch(batch_id).scripted(), args))

    def commit_call(self, claim: ClaimedRollout, commit: Commit) -> ScriptCall:
        """The script call that commits; its answer is read by `committed`."""
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
        """The script call that gives an attempt up for another one later; without an error line it is not used up.

        `replay` goes along to the next claim of the same attempt, for where that was not used up or is given back.
        """
        delay_ms = int(delay_s * 1000)
        args: list[str | bytes | int] = [claim.member, claim.attempt, claim.token, error_line, delay_ms, replay]
        return ScriptCall(RETRY, self._store.keys.batch(claim.batch_id).scripted(), args)

    def refund_call(self, batch_id: str, member: str, attempt: int, token: str) -> ScriptCall:
        """The script call that gives a rollout back the attempt that failed under this token, now or when it fails."""
        return ScriptCall(REFUND, self._store.keys.batch(batch_id).scripted(), [member, attempt, token])

    def alone_call(self, claim: Claim) -> ScriptCall:
        """The script call that says that a suspect starts now, beside nothing else; it answers 0 for a void claim."""
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
        """Take back what dead workers ran, and jobs handed to Celery before `overdue_ms` (0 leaves them).

        What was present at `suspect_after` deaths is run alone from then on, and fails only where it dies so. Bounded
        steps, which may be repeated.
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
        """Whether each claim still stands; a false one was cancelled or given to somebody else.

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
    """Raises a decode error."""
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
