"""Transitions of judging: handed over by workers, sent by the dispatcher, claimed by judge workers.

The conversation is over and stored, so a slow or absent judge costs no slot and no attempt. A rollout waits, is tried,
and waits again until its judge's clock runs out. That clock starts with the first try, or when its judge is parked
(`gym.state.ledger.breakers`), not with the waiting. Parked rollouts wait apart, until their judge works or the clock
runs out. A judge worker names a rollout by (member, attempt, token) as a worker does, and commits through
`Rollouts.commit_call`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import orjson

from gym.errors import ErrorKind, Stage
from gym.jsontypes import JsonObject
from gym.state.ledger.result_records import read_tries
from gym.state.ledger.rollouts import LIVE_PER_STEP, STEP_PAUSE_S, Claim
from gym.state.ledger.unreadable_claims import ClaimedItem, readable_claims
from gym.state.redis.encodings import OUTCOME_LETTER, live_or_none
from gym.state.redis.store import (
    ASK_JUDGE,
    JUDGE_AGAIN,
    JUDGE_CLAIM,
    JUDGE_PARK,
    JUDGE_RECOVER,
    JUDGE_RELEASE,
    JUDGE_TAKE,
    REJUDGE,
    Script,
    ScriptCall,
    Store,
)
from gym.state.redis.unreadable import complain, concerns_redis, read_object, read_or_none

Argument = str | bytes | int | float
CHUNK = 100
MOST_STEPS = 50
"""Steps over a judge's queue in one call, since the dispatcher waits for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Handover:
    """Values that go with a rollout from its worker to a judge.

    `record` is its result as far as it is known, `ask` and `trajectory` are blob values.
    """

    judge: str
    record: bytes
    ask: bytes
    trajectory: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeClaim:
    """A rollout that this judge worker judges; times in ms of the server's clock.

    `lost` counts judge workers that died while they held it, `tries` are the failed tries. `old_outcome` is set if it
    has a result and is judged again, and `replaced` if `judge` is not the one that its verifier asked.
    """

    batch_id: str
    member: str
    attempt: int
    token: str
    environment: str
    judge: str
    over_at: int
    began_at: int
    now: int
    lost: int
    record: bytes
    tries: tuple[JsonObject, ...]
    ask: bytes
    replaced: bool = False
    old_outcome: str | None = None
    old_sums: dict[str, float] = field(default_factory=dict)

    @property
    def row(self) -> int:
        """Row number of its group."""
        return int(self.member.partition(":")[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class RejudgedResult:
    """A result to be judged again. `cursor` is its log position, `sums` its part of its environment's sums."""

    member: str
    cursor: str
    environment: str
    judge: str
    replaced: bool
    outcome: str
    sums: dict[str, float]
    record: bytes


class JudgeQueue(NamedTuple):
    """Numbers of a batch's rollouts at one judge: waiting, sent to judge workers, parked.

    Parked ones also count as waiting.
    """

    waiting: int = 0
    asked: int = 0
    parked: int = 0


@dataclass(frozen=True, slots=True)
class Sibling:
    """A rollout of a group as judging sees it; `over` if its conversation is, `ask` if it asked a judge."""

    sample: int
    over: bool
    ask: bytes | None


class Judging:
    """The transitions, as workers, dispatcher, judge workers and the API call them."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def ask_call(self, claim: Claim, handover: Handover) -> ScriptCall:
        """Return the script call that frees the worker; it answers 1, 2 if repeated, 0 if fenced off."""
        args: list[Argument] = [
            claim.member,
            claim.attempt,
            claim.token,
            handover.judge,
            handover.record,
            handover.ask,
            handover.trajectory,
        ]
        return ScriptCall(ASK_JUDGE, self._keys(claim.batch_id), args, joins=True)

    async def load(self, batch_ids: Sequence[str]) -> dict[str, dict[str, JudgeQueue]]:
        """Return queue lengths by batch and judge; empty queues are left out."""
        pipeline = self._store.redis.pipeline(transaction=False)
        for batch_id in batch_ids:
            pipeline.hgetall(self._store.keys.batch(batch_id).judges)
        answers = await pipeline.execute(raise_on_error=False) if batch_ids else []
        found = {}
        for batch_id, counters in zip(batch_ids, answers, strict=True):
            if isinstance(counters, Exception):
                if concerns_redis(counters):
                    raise counters
                complain("batch", batch_id, counters)
                continue
            found[batch_id] = read_queues(counters)
        return found

    async def take(self, batch_id: str, judge: str, most: int) -> list[tuple[str, str]]:
        """Send up to `most` rollouts to judge workers, each (member, token); no parked ones."""
        return await self._take(batch_id, judge, most, "due")

    async def take_over(self, batch_id: str, judge: str, most: int) -> list[tuple[str, str]]:
        """Like `take`, for parked rollouts whose judge's clock has run out, which are to be ended."""
        return await self._take(batch_id, judge, most, "over")

    async def probe(self, batch_id: str, judge: str, *, seed: int) -> list[tuple[str, str]]:
        """Like `take`, for one parked rollout with time left, if there is one."""
        return await self._take(batch_id, judge, 1, str(seed))

    async def park(self, batch_id: str, judge: str, clock_s: float) -> None:
        """Park all rollouts that wait for a judge with a clock of `clock_s`; repeat it for those that arrive later."""
        await self._all_of(JUDGE_PARK, batch_id, judge, int(clock_s * 1000))

    async def release(self, batch_id: str, judge: str) -> None:
        """Send all rollouts that wait for a judge at once, including those that wait for their next try."""
        await self._all_of(JUDGE_RELEASE, batch_id, judge)

    async def claim(
        self, batch_id: str, worker: str, claim_id: str, wanted: Sequence[tuple[str, str]]
    ) -> list[JudgeClaim]:
        """Start on (member, token); repeatable with the same `claim_id`, which must be unique to this slice."""
        args: list[Argument] = [worker, claim_id]
        for member, token in wanted:
            args += [member, token]
        now, *items = await self._store.run(JUDGE_CLAIM, self._keys(batch_id), args)
        claimed = [
            ClaimedItem(member=item[0], attempt=item[1], token=item[2], read=partial(_claim, batch_id, int(now), item))
            for item in items
        ]
        kind = ErrorKind.RESULT_UNREADABLE
        return await readable_claims(self._store, batch_id, claimed, kind=kind, stage=Stage.JUDGE)

    def again_call(
        self,
        batch_id: str,
        member: str,
        token: str,
        error_line: bytes,
        delay_s: float,
        *,
        judge: str = "",
        clock_goes_on: bool = False,
    ) -> ScriptCall:
        """Return the script call that lets a rollout wait for another try, before `judge` if given.

        Without an error line the try was not used, and the judge's clock is set back unless `clock_goes_on`.
        """
        args: list[Argument] = [member, token, error_line, int(delay_s * 1000), judge, int(clock_goes_on)]
        return ScriptCall(JUDGE_AGAIN, self._keys(batch_id), args)

    async def recover(self, batch_id: str, *, overdue_ms: int, dead_workers: Iterable[str]) -> tuple[int, int]:
        """Take back rollouts of dead judge workers, and old jobs; return both counts.

        Jobs older than `overdue_ms` count as lost; 0 leaves them. Bounded, repeatable steps.
        """
        dead, waiting, resent, cursor = list(dead_workers), 0, 0, b"0"
        while True:
            step: list[Argument] = [overdue_ms, cursor, LIVE_PER_STEP, *dead]
            waiting_now, resent_now, cursor = await self._store.run(JUDGE_RECOVER, self._keys(batch_id), step)
            waiting, resent = waiting + waiting_now, resent + resent_now
            if cursor == b"0":
                return waiting, resent
            await asyncio.sleep(STEP_PAUSE_S)

    async def rejudge(self, batch_id: str, items: Sequence[RejudgedResult]) -> int:
        """Judge results again; return their number, -1 while the batch is being cancelled.

        Results that have changed since they were read are left alone.
        """
        judged = 0
        for first in range(0, len(items), CHUNK):
            args: list[Argument] = []
            for item in items[first : first + CHUNK]:
                args += [item.member, item.cursor, item.environment, item.judge, _again_header(item), item.record]
            done = int(await self._store.run(REJUDGE, self._keys(batch_id), args))
            if done < 0:
                return -1
            judged += done
        return judged

    async def group(self, batch_id: str, row: int) -> list[Sibling]:
        """Return every rollout of a group."""
        keys = self._store.keys.batch(batch_id)
        head = await self._store.redis.hget(keys.rows, str(row))
        members = [f"{row}:{sample}" for sample in range(int(head.split(b" ", 1)[0]) if head else 0)]
        found: list[Sibling] = []
        for first in range(0, len(members), LIVE_PER_STEP):
            pipeline = self._store.redis.pipeline(transaction=False)
            for key in (keys.live, keys.done, keys.asks):
                pipeline.hmget(key, members[first : first + LIVE_PER_STEP])
            live, done, asks = await pipeline.execute()
            found += [
                Sibling(sample, ended is not None or _is_judging(value), ask)
                for sample, (value, ended, ask) in enumerate(zip(live, done, asks, strict=True), first)
            ]
        return found

    async def _take(self, batch_id: str, judge: str, most: int, which: str) -> list[tuple[str, str]]:
        flat = await self._store.run(JUDGE_TAKE, self._keys(batch_id), [judge, most, which])
        return [(flat[i].decode(), str(flat[i + 1])) for i in range(0, len(flat), 2)]

    async def _all_of(self, script: Script, batch_id: str, judge: str, *args: Argument) -> None:
        """Run a script over a judge's queue in a bounded number of steps; the next call continues."""
        for _ in range(MOST_STEPS):
            if not await self._store.run(script, self._keys(batch_id), [judge, *args, CHUNK]):
                return
            await asyncio.sleep(STEP_PAUSE_S)

    def _keys(self, batch_id: str) -> list[str]:
        return self._store.keys.batch(batch_id).scripted()


def waiting_of(counters: Mapping[bytes, bytes]) -> dict[str, int]:
    """Return the number of a batch's rollouts that wait for each judge."""
    return {judge: line.waiting for judge, line in read_queues(counters).items()}


def read_queues(counters: Mapping[bytes, bytes]) -> dict[str, JudgeQueue]:
    """Return the queue lengths of a batch by judge."""
    read = [read_or_none("counter of judges", name, _counter, name, value) for name, value in counters.items()]
    numbers = dict(each for each in read if each is not None)
    judges = {name.rpartition("|")[0] for name, number in numbers.items() if number}
    return {
        judge: JudgeQueue(*(numbers.get(f"{judge}|{field}", 0) for field in JudgeQueue._fields)) for judge in judges
    }


def _is_judging(value: bytes | None) -> bool:
    live = live_or_none(value)
    return live is not None and live.judging


def _counter(name: bytes, value: bytes) -> tuple[str, int]:
    return name.decode(), int(value)


def _claim(batch_id: str, now: int, item: Sequence[bytes]) -> JudgeClaim:
    member, attempt, token, environment, judge, first, lines, ask = item
    header = read_object(first)
    if header.get("unreadable"):
        raise ValueError("the stored state of its judging is damaged")
    record, *tries = lines.splitlines()
    if record:  # empty if nothing is recorded yet
        read_object(record)
    old: dict[str, Any] = header.get("old") or {}
    return JudgeClaim(
        batch_id=batch_id,
        member=member.decode(),
        attempt=int(attempt),
        token=token.decode(),
        environment=environment.decode(),
        judge=judge.decode(),
        over_at=int(header["over_at"]),
        began_at=int(header["began"]),
        now=now,
        lost=int(header["lost"]),
        record=record,
        tries=tuple(read_tries(b"\n".join(tries))),
        ask=ask,
        replaced=bool(header.get("replaced")),
        old_outcome={letter: name for name, letter in OUTCOME_LETTER.items()}.get(old.get("letter", "")),
        old_sums=dict(old.get("sums") or {}),
    )


def _again_header(item: RejudgedResult) -> bytes:
    old = {"letter": OUTCOME_LETTER[item.outcome], "sums": item.sums}
    return orjson.dumps({"began": 0, "lost": 0, "replaced": item.replaced, "old": old})
