"""The scripts against a model of the same rules in memory, driven by hypothesis.

Every step checks that the ledger balances, that each ended rollout is in the log once, and that the states agree.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from gym.ids import GroupRef, parse_member
from gym.rollout import TRANSITIONS, RolloutState
from gym.state.ledger.batches import Batches, activate
from gym.state.ledger.judging import Handover, JudgeClaim, Judging, RejudgedResult
from gym.state.ledger.rollouts import Claim, Commit, Rollouts, TakenRollout
from gym.state.ledger.submission import NewBatch, StagedRow, Staging
from gym.state.redis.store import ScriptCall, Store
from gym.state.repair.audit import Audits
from gym.task import RowHeader
from workers.dispatch.upkeep.findings import BatchContext, examine

MAX_ATTEMPTS = 2
SUSPECT_AFTER = 2
SAMPLES = 3
ENVIRONMENTS = ("weather", "sql")  # of even and odd rows
JUDGE = st.sampled_from(["j", "k"])
PARKED = st.sets(st.sampled_from(ENVIRONMENTS))
FINAL = {state for state in RolloutState if state in ("succeeded", "failed", "cancelled", "expired")}
_numbers = itertools.count()


class Farm(RuleBasedStateMachine):
    """One batch of two environments with `early_stop` at 2 usable rollouts of a group of 3."""

    redis_url = ""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.store = Store.connect(self.redis_url)
        self.batches, self.rollouts, self.judging = Batches(self.store), Rollouts(self.store), Judging(self.store)
        self.audits = Audits(self.store)
        self.batch_id = f"model-{next(_numbers)}"
        self.state: dict[str, RolloutState] = {}
        self.tries: dict[str, list[str]] = {}  # by member, the kinds of its failed attempts
        self.in_celery: list[tuple[str, int]] = []
        self.handed_over: set[str] = set()  # marked as in Celery
        self.suspects: dict[str, str] = {}  # and the token of the last run alone
        self.owed: dict[str, int] = {}  # by member, the attempt that it gets refunded at its next retry
        self.claims: list[tuple[str, Claim]] = []  # of every claim ever made, void ones too
        self.place: dict[str, str] = {}  # of judging rollouts: w waits, p is parked, s sent, j with a judge worker
        self.line: dict[str, str] = {}  # of judging rollouts: the judge
        self.over: set[str] = set()  # of parked rollouts: those whose judge's clock is over
        self.before: dict[str, RolloutState] = {}  # of rejudged rollouts: the earlier outcome
        self.asked: set[str] = set()
        self.sent: list[tuple[str, str]] = []
        self.judge_claims: list[tuple[str, JudgeClaim]] = []
        self.usable: Counter[str] = Counter()
        self.replays: dict[str, bytes] = {}  # of attempts that were handed back
        self.cancelled = self.sealed = False
        self.rows = 0
        self.buried: set[str] = set()  # cancelled before submission
        self._do(self._submit(2, create=True))

    def _do(self, coroutine: Any) -> Any:
        return self.loop.run_until_complete(coroutine)

    async def _submit(self, rows: int, *, create: bool) -> None:
        staging = Staging(self.store, self.batch_id)
        names = [ENVIRONMENTS[row % 2] for row in range(self.rows, self.rows + rows)]
        headers = [RowHeader(task_id=None, environment=name, num_samples=SAMPLES) for name in names]
        await staging.add([StagedRow(header=header, raw=b"{}", digest="") for header in headers])
        spec = NewBatch(spec={}, digest="d", run="r", priority=5, weight=1.0, policy="p")
        await staging.publish(create=spec if create else None, seal=False)
        for row in range(self.rows, self.rows + rows):
            for sample in range(SAMPLES):
                self.state[f"{row}:{sample}"] = RolloutState.QUEUED
                self.tries[f"{row}:{sample}"] = []
        self.rows += rows
        self._stop([member for member in self.state if member in self.buried])

    def _move(self, member: str, to: RolloutState) -> None:
        assert to in TRANSITIONS[self.state[member]], f"{member}: {self.state[member]} to {to}"
        self.state[member] = to
        self.handed_over.discard(member)
        if to is RolloutState.JUDGING:
            self.place[member], self.line[member] = "w", "j"
        else:
            self.place.pop(member, None)
            self.line.pop(member, None)
            self.before.pop(member, None)

    def _stands(self, claim: Claim) -> bool:
        latest = [other for _, other in self.claims if other.member == claim.member][-1]
        return self.state[claim.member] is RolloutState.RUNNING and latest is claim

    @precondition(lambda self: not self.sealed)
    @rule(rows=st.integers(1, 2))
    def append(self, rows: int) -> None:
        self._do(self._submit(rows, create=False))

    @rule()
    def seal(self) -> None:
        self._do(self.batches.seal(self.batch_id))
        self.sealed = True

    @rule(most=st.integers(1, 5), parked=PARKED, suspects=st.booleans())
    def take(self, most: int, parked: set[str], suspects: bool) -> None:
        taken = self._do(self.rollouts.take(self.batch_id, most, parked=sorted(parked), suspects=suspects))
        assert len(taken) <= most
        assert not parked & {one.environment for one in taken}
        assert suspects or not any(one.suspect for one in taken)
        self._took(taken)

    @rule(wanted=st.none() | st.sampled_from(ENVIRONMENTS), parked=PARKED, seed=st.integers(0, 1000))
    def probe(self, wanted: str | None, parked: set[str], seed: int) -> None:
        taken = self._do(self.rollouts.probe(self.batch_id, environment=wanted, seed=seed, parked=sorted(parked)))
        assert len(taken) <= 1
        assert not any(one.suspect for one in taken)
        assert all(one.environment == wanted if wanted else one.environment not in parked for one in taken)
        self._took(taken)

    def _took(self, taken: list[TakenRollout]) -> None:
        for one in taken:
            assert one.environment == ENVIRONMENTS[int(one.member.partition(":")[0]) % 2]
            assert self.state[one.member] is RolloutState.QUEUED
            assert one.member not in self.handed_over
            assert one.attempt == len(self.tries[one.member]) + 1
            assert one.suspect == (one.member in self.suspects)
            self.handed_over.add(one.member)
            self.in_celery.append((one.member, one.attempt))

    @precondition(lambda self: self.in_celery)
    @rule(data=st.data(), worker=st.sampled_from(["w1", "w2"]), again=st.booleans())
    def claim(self, data: st.DataObject, worker: str, again: bool) -> None:
        """Deliver a message, perhaps for a second time."""
        message = data.draw(st.sampled_from(self.in_celery))
        if not again:
            self.in_celery.remove(message)
        self._claimed(worker, self._do(self.rollouts.claim(self.batch_id, worker, [message])))

    def _claimed(self, worker: str, claims: list[Claim]) -> list[Claim]:
        """Return the claims that are new to the worker; it gets those that it holds again."""
        held = {other.token for owner, other in self.claims if owner == worker and self._stands(other)}
        fresh = [claim for claim in claims if claim.token not in held]
        for claim in claims:
            assert claim.replay == self.replays.get(claim.member, b"")
        for claim in fresh:
            assert claim.member in self.handed_over
            self._move(claim.member, RolloutState.RUNNING)
            self.claims.append((worker, claim))
        return fresh

    @rule(most=st.integers(1, 5), worker=st.sampled_from(["w1", "w2"]), alone=st.booleans())
    def start(self, most: int, worker: str, alone: bool) -> None:
        """Claim some on a worker, which perhaps starts its suspects."""
        self.take(most=most, parked=set(), suspects=True)
        messages, self.in_celery = list(dict.fromkeys(self.in_celery)), []  # a job names each rollout once
        for claim in self._claimed(worker, self._do(self.rollouts.claim(self.batch_id, worker, messages))):
            if claim.member in self.suspects and alone:
                self._begin_alone(claim)

    @precondition(lambda self: self.in_celery)
    @rule(data=st.data())
    def bounce(self, data: st.DataObject) -> None:
        """Give a message back from a draining worker, perhaps one that has been claimed elsewhere."""
        member, attempt = data.draw(st.sampled_from(self.in_celery))
        back = self._do(self.rollouts.bounce(self.batch_id, [(member, attempt)]))
        stood = member in self.handed_over and attempt == len(self.tries[member]) + 1
        assert back == int(stood)
        if stood:
            self.handed_over.discard(member)

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), outcome=st.sampled_from(["succeeded", "failed"]), twice=st.booleans())
    def commit(self, data: st.DataObject, outcome: str, twice: bool) -> None:
        """Commit from a worker, perhaps a zombie, perhaps twice since it lost the answer."""
        _, claim = data.draw(st.sampled_from(self.claims))
        self._commit(claim, outcome, stands=self._stands(claim), twice=twice)

    def _commit(
        self, claim: Claim | JudgeClaim, outcome: str, *, stands: bool, twice: bool, early_stop: int = 2
    ) -> None:
        call = self._commit_call(claim, outcome, early_stop)
        answers = self._do(self.store.run_many([call, call] if twice else [call]))
        if not stands:
            assert [answer[0] for answer in answers].count(1) == 0
            return
        assert [answer[0] for answer in answers] == ([1, 2] if twice else [1])
        self._committed(claim.member, outcome, early_stop)

    def _commit_call(self, claim: Claim | JudgeClaim, outcome: str, early_stop: int) -> ScriptCall:
        commit = Commit(
            outcome=outcome,
            record=b"{}",
            trajectory=b"",
            usable=outcome == "succeeded",
            early_stop=early_stop,
            sums={"run": 1, "total_s": 0.5},
        )
        return self.rollouts.commit_call(claim, commit)

    def _committed(self, member: str, outcome: str, early_stop: int) -> None:
        self._move(member, RolloutState(outcome))
        self.replays.pop(member, None)
        row = member.partition(":")[0]
        if outcome == "succeeded" and early_stop:
            self.usable[row] += 1
            if self.usable[row] == 2:
                self._stop([f"{row}:{sample}" for sample in range(SAMPLES)])

    def _stop(self, members: list[str]) -> None:
        for member in members:
            if self.state[member] not in FINAL:
                self._move(member, self.before.get(member, RolloutState.CANCELLED))
                self.replays.pop(member, None)

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def commit_together(self, data: st.DataObject) -> None:
        """Commit several outcomes in one call; zombies and repeats may be among them."""
        chosen = data.draw(st.lists(st.sampled_from(self.claims), min_size=2, max_size=6))
        outcomes = [data.draw(st.sampled_from(["succeeded", "failed"])) for _ in chosen]
        calls = [self._commit_call(claim, outcome, 2) for (_, claim), outcome in zip(chosen, outcomes, strict=True)]
        answers = self._do(self.store.run_many(calls))
        for (_, claim), outcome, answer in zip(chosen, outcomes, answers, strict=True):
            assert (answer[0] == 1) == self._stands(claim)
            if answer[0] == 1:
                self._committed(claim.member, outcome, 2)

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), twice=st.booleans())
    def ask_judge(self, data: st.DataObject, twice: bool) -> None:
        """Hand a rollout over to a judge, perhaps by a zombie, perhaps twice."""
        _, claim = data.draw(st.sampled_from(self.claims))
        stands = self._stands(claim)
        call = self.judging.ask_call(claim, Handover(judge="j", record=b"{}", ask=b"i", trajectory=b"it"))
        answers = self._do(self.store.run_many([call, call] if twice else [call]))
        if stands:
            assert answers == ([1, 2] if twice else [1])
            self._move(claim.member, RolloutState.JUDGING)
            self.replays.pop(claim.member, None)
            self.asked.add(claim.member)
        else:
            assert 1 not in answers

    @rule(most=st.integers(1, 4), judge=JUDGE)
    def judge_take(self, most: int, judge: str) -> None:
        self._sent(self._do(self.judging.take(self.batch_id, judge, most)), most, self._in_line(judge, "w"))

    def _in_line(self, judge: str, place: str) -> set[str]:
        return {member for member, where in self.place.items() if where == place and self.line[member] == judge}

    def _sent(self, taken: list[tuple[str, str]], most: int, waiting: set[str]) -> None:
        assert len(taken) == min(most, len(waiting))
        for member, token in taken:
            assert member in waiting
            self.place[member] = "s"
            self.sent.append((member, token))

    @rule(judge=JUDGE, clock_s=st.sampled_from([-1.0, 1000.0]))
    def judge_park(self, judge: str, clock_s: float) -> None:
        """Park the rollouts of a failing judge; the clock of those with a negative one is over at once."""
        self._do(self.judging.park(self.batch_id, judge, clock_s))
        for member in self._in_line(judge, "w"):
            self.place[member] = "p"
            (self.over.add if clock_s < 0 else self.over.discard)(member)

    @rule(judge=JUDGE)
    def judge_release(self, judge: str) -> None:
        self._do(self.judging.release(self.batch_id, judge))
        self.place |= dict.fromkeys(self._in_line(judge, "p"), "w")

    @rule(judge=JUDGE, most=st.integers(1, 4))
    def judge_take_over(self, judge: str, most: int) -> None:
        taken = self._do(self.judging.take_over(self.batch_id, judge, most))
        self._sent(taken, most, self._in_line(judge, "p") & self.over)

    @rule(judge=JUDGE, seed=st.integers(0, 100))
    def judge_probe(self, judge: str, seed: int) -> None:
        taken = self._do(self.judging.probe(self.batch_id, judge, seed=seed))
        self._sent(taken, 1, self._in_line(judge, "p") - self.over)

    @precondition(lambda self: self.sent)
    @rule(data=st.data(), worker=st.sampled_from(["j1", "j2"]), again=st.booleans(), twice=st.booleans())
    def judge_claim(self, data: st.DataObject, worker: str, again: bool, twice: bool) -> None:
        """Deliver a message to a judge worker, perhaps twice; the claim's answer may be lost and repeated."""
        message = data.draw(st.sampled_from(self.sent))
        if not again:
            self.sent.remove(message)
        claim_id = f"c{next(_numbers)}"
        found = self._do(self.judging.claim(self.batch_id, worker, claim_id, [message]))
        if twice and found:
            [first] = found
            found = self._do(self.judging.claim(self.batch_id, worker, claim_id, [message]))
            assert found[0].token != first.token
        for claim in found:
            assert self.place[claim.member] == "s"
            assert claim.record == b"{}"
            self.place[claim.member] = "j"
            self.judge_claims.append((worker, claim))

    def _judges(self, claim: JudgeClaim) -> bool:
        latest = [other for _, other in self.judge_claims if other.member == claim.member][-1]
        return self.place.get(claim.member) == "j" and latest is claim

    @precondition(lambda self: self.judge_claims)
    @rule(data=st.data(), outcome=st.sampled_from(["succeeded", "failed"]), twice=st.booleans())
    def verdict(self, data: st.DataObject, outcome: str, twice: bool) -> None:
        """Commit from a judge worker, perhaps a zombie."""
        _, claim = data.draw(st.sampled_from(self.judge_claims))
        again = claim.old_outcome is not None
        self._commit(claim, outcome, stands=self._judges(claim), twice=twice, early_stop=0 if again else 2)

    @precondition(lambda self: self.judge_claims)
    @rule(data=st.data(), used_up=st.booleans(), judge=st.just("") | JUDGE, goes_on=st.booleans())
    def judge_again(self, data: st.DataObject, used_up: bool, judge: str, goes_on: bool) -> None:
        """Fail a judging try, or hand it back, perhaps to another judge's queue."""
        _, claim = data.draw(st.sampled_from(self.judge_claims))
        stands = self._judges(claim)
        line = b"{}" if used_up else b""
        call = self.judging.again_call(
            self.batch_id, claim.member, claim.token, line, 0, judge=judge, clock_goes_on=goes_on
        )
        assert self._do(self.store.run_many([call])) == [int(stands)]
        if stands:
            self.place[claim.member] = "w"
            self.line[claim.member] = judge or self.line[claim.member]

    @rule(worker=st.sampled_from(["j1", "j2"]), resend=st.booleans())
    def judge_recover(self, worker: str, resend: bool) -> None:
        """Recover from the death of a judge worker; perhaps the broker lost its messages as well."""
        overdue = 2**53 if resend else 0
        self._do(self.judging.recover(self.batch_id, overdue_ms=overdue, dead_workers=[worker]))
        for owner, claim in self.judge_claims:
            if owner == worker and self._judges(claim):
                self.place[claim.member] = "w"
        if resend:
            self.place |= {member: "w" for member, place in self.place.items() if place == "s"}

    @rule(outcome=st.sampled_from(["succeeded", "failed"]))
    def judge_one(self, outcome: str) -> None:
        """Judge one rollout from start to end, which rules drawn by chance seldom do."""
        for taken in self._do(self.rollouts.take(self.batch_id, 1)):
            [claim] = self._do(self.rollouts.claim(self.batch_id, "w1", [(taken.member, taken.attempt)]))
            self._move(claim.member, RolloutState.RUNNING)
            self.claims.append(("w1", claim))
            handover = Handover(judge="j", record=b"{}", ask=b"i", trajectory=b"it")
            self._do(self.store.run_many([self.judging.ask_call(claim, handover)]))
            self._move(claim.member, RolloutState.JUDGING)
            self.asked.add(claim.member)
            self.replays.pop(claim.member, None)
        for message in self._do(self.judging.take(self.batch_id, "j", 1)):
            [judged] = self._do(self.judging.claim(self.batch_id, "j1", f"c{next(_numbers)}", [message]))
            self.place[judged.member] = "j"
            self.judge_claims.append(("j1", judged))
            early_stop = 0 if judged.old_outcome is not None else 2
            self._commit(judged, outcome, stands=True, twice=False, early_stop=early_stop)

    @rule(data=st.data())
    def rejudge(self, data: st.DataObject) -> None:
        """Judge results again, also those that no judge was asked about."""
        log = self._do(self.store.redis.xrange(self.store.keys.batch(self.batch_id).log))
        entries = [(fields[b"m"].decode(), cursor.decode()) for cursor, fields in log if b"j" in fields]
        chosen = data.draw(st.lists(st.sampled_from(entries), min_size=1, max_size=3, unique=True)) if entries else []
        items = [
            RejudgedResult(
                member=member,
                cursor=cursor,
                environment=ENVIRONMENTS[int(member.partition(":")[0]) % 2],
                judge="j",
                replaced=False,
                outcome=self.state[member],
                sums={"scored": 1.0},
                record=b"{}",
            )
            for member, cursor in chosen
        ]
        judged = [member for member, _ in chosen if member in self.asked]
        assert self._do(self.judging.rejudge(self.batch_id, items)) == len(judged)
        for member in judged:
            before = self.state[member]
            self._move(member, RolloutState.JUDGING)
            self.before[member] = before

    @precondition(lambda self: self.claims)
    @rule(
        data=st.data(),
        kind=st.sampled_from(["model_unreachable", "verifier_error", ""]),
        replay=st.sampled_from([b"", b"one", b"two"]),
    )
    def give_up(self, data: st.DataObject, kind: str, replay: bytes) -> None:
        """Retry a failed attempt, or hand it back: its worker drains, or its breaker is open."""
        _, claim = data.draw(st.sampled_from(self.claims))
        stands = self._stands(claim)
        line = json.dumps({"kind": kind, "retryable": kind == "model_unreachable"}).encode() if kind else b""
        answer = self._do(self.store.run_many([self.rollouts.retry_call(claim, line, 0, replay=replay)]))
        assert answer == [int(stands)]
        if stands:
            self._move(claim.member, RolloutState.QUEUED)
            owed = self.owed.pop(claim.member, None)
            if owed is not None and owed != claim.attempt:
                del self.tries[claim.member][owed - 1]
            used_up = bool(kind) and owed != claim.attempt
            if used_up:
                self.tries[claim.member].append(kind)
            if replay:
                self.replays[claim.member] = replay
            elif used_up:
                self.replays.pop(claim.member, None)

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), twice=st.booleans())
    def refund(self, data: st.DataObject, twice: bool) -> None:
        """Open a breaker: earlier failures get their attempts back, in any state."""
        _, claim = data.draw(st.sampled_from(self.claims))
        member, tries = claim.member, self.tries[claim.member]
        call = self.rollouts.refund_call(self.batch_id, member, claim.attempt, claim.token)
        used = claim.attempt == len(tries)
        waits = self.state[member] is RolloutState.QUEUED and member not in self.handed_over
        if waits and used:
            tries.pop()
            expected = [1, 0]
        elif self.state[member] not in FINAL and not waits and (used or self._stands(claim)):
            self.owed[member] = claim.attempt
            expected = [1, 1]
        else:
            expected = [0, 0]
        answers = self._do(self.store.run_many([call, call] if twice else [call]))
        assert answers == expected[: len(answers)]

    @precondition(lambda self: any(claim.member in self.suspects for _, claim in self.claims))
    @rule(data=st.data())
    def run_alone(self, data: st.DataObject) -> None:
        """Start a suspect on a worker that runs nothing else."""
        claims = [claim for _, claim in self.claims if claim.member in self.suspects]
        self._begin_alone(data.draw(st.sampled_from(claims)))

    def _begin_alone(self, claim: Claim) -> None:
        stands = self._stands(claim)
        assert self._do(self.store.run_many([self.rollouts.alone_call(claim)])) == [int(stands)]
        if stands:
            self.suspects[claim.member] = claim.token

    @rule(dead=st.sampled_from([["w1"], ["w2"], ["w1", "w2"]]), resend=st.booleans())
    def recover(self, dead: list[str], resend: bool) -> None:
        """Recover from the death of workers; perhaps the broker lost their messages as well."""
        overdue = 2**53 if resend else 0
        self._do(
            self.rollouts.recover(
                self.batch_id,
                overdue_ms=overdue,
                max_attempts=MAX_ATTEMPTS,
                dead_workers=dead,
                suspect_after=SUSPECT_AFTER,
            )
        )
        if resend:
            self.handed_over.clear()
        for owner, claim in self.claims:
            if owner in dead and self._stands(claim):
                self._died(claim)

    def _died(self, claim: Claim) -> None:
        member, tries = claim.member, self.tries[claim.member]
        alone = self.suspects.get(member) == claim.token
        if member in self.suspects and not alone:
            self._move(member, RolloutState.QUEUED)  # it had not begun
            return
        tries.append("worker_lost")
        self.replays.pop(member, None)
        used_up = len([kind for kind in tries if kind != "verifier_error"]) >= MAX_ATTEMPTS
        seen_dying = tries.count("worker_lost") >= SUSPECT_AFTER
        if used_up and (alone or not seen_dying):
            self._move(member, RolloutState.FAILED)
            return
        self._move(member, RolloutState.QUEUED)
        if seen_dying:
            self.suspects.setdefault(member, "")

    @rule(row=st.integers(0, 3), sample=st.none() | st.integers(0, SAMPLES - 1))
    def cancel(self, row: int, sample: int | None) -> None:
        """Cancel a group or a rollout, submitted or not."""
        if sample is None:
            self._do(self.batches.cancel_group(GroupRef(self.batch_id, row)))
            members = [f"{row}:{number}" for number in range(SAMPLES)]
        else:
            self._do(self.batches.cancel_rollout(parse_member(self.batch_id, f"{row}:{sample}")))
            members = [f"{row}:{sample}"]
        if row < self.rows:
            self._stop(members)
        else:
            self.buried |= set(members)

    @precondition(lambda self: len(self.state) > 20)
    @rule()
    def cancel_batch(self) -> None:
        self._do(self.batches.cancel_batch(self.batch_id))
        self._stop(list(self.state))
        self.sealed = True

    @invariant()
    def states_agree(self) -> None:
        ledger = self._do(self.batches.status(self.batch_id)).ledger
        assert ledger.balanced, ledger
        counts = Counter(self.state.values())
        seen = ledger.as_dict()
        assert seen.pop("submitted") == len(self.state)
        assert seen == {state.value: counts[state] for state in RolloutState}

    @invariant()
    def the_ledger_check_suspects_nothing(self) -> None:
        (held,) = self._do(self.audits.count({self.batch_id: "0"}))
        around = BatchContext(
            workers={"w1", "w2", "j1", "j2"}, free_slots=1, rollout_timeout_s=600.0, lease_ttl_s=8.0, no_progress_s=60.0
        )
        assert examine(held, around) == []

    @invariant()
    def what_is_kept_for_a_replay_goes_with_its_attempt(self) -> None:
        kept = self._do(self.store.redis.hgetall(self.store.keys.batch(self.batch_id).traj))
        assert {name: value for name, value in kept.items() if name.endswith(b"|replay")} == {
            f"{member}|replay".encode(): replay for member, replay in self.replays.items()
        }

    @invariant()
    def lines_before_judges_agree(self) -> None:
        places = Counter(self.place.values())
        load = self._do(self.judging.load([self.batch_id]))[self.batch_id]
        for judge in ("j", "k"):
            waiting, sent, judged, parked = (len(self._in_line(judge, place)) for place in "wsjp")
            assert load.get(judge, (0, 0, 0)) == (waiting + parked, sent + judged, parked)
        keys = self.store.keys.batch(self.batch_id)
        assert self._do(self.store.redis.zcard(keys.awaiting)) == places["w"] + places["p"]
        assert self._do(self.store.redis.hlen(keys.judging)) == len(self.place)

    @invariant()
    def what_waits_is_somewhere_and_parked_ones_are_counted(self) -> None:
        keys = self.store.keys.batch(self.batch_id)
        pipeline = self.store.redis.pipeline(transaction=False)
        pipeline.lrange(keys.backlog, 0, -1)
        pipeline.zrange(keys.later, 0, -1)
        pipeline.zrange(keys.parked, 0, -1)
        pipeline.hmget(keys.meta, [f"parked|{name}" for name in ENVIRONMENTS])
        in_backlog, in_later, in_parked, counts = self._do(pipeline.execute())
        backlog = {member for entry in in_backlog for member in _members(*entry.split(b":")[:3])}
        later = {entry.decode().rpartition(":")[0] for entry in in_later}
        parked = [member for entry in in_parked for member in _members(*entry.partition(b"|")[2].split(b":"))]
        waiting = {member for member, state in self.state.items() if state is RolloutState.QUEUED} - self.handed_over
        assert waiting <= backlog | later | set(parked)
        assert len(set(parked)) == len(parked)
        assert set(parked) <= waiting
        by_environment = Counter(int(member.partition(":")[0]) % 2 for member in parked)
        assert [int(number or 0) for number in counts] == [by_environment[0], by_environment[1]]

    @invariant()
    def each_outcome_once(self) -> None:
        entries = self._do(self.store.redis.xrange(self.store.keys.batch(self.batch_id).log))
        logged = [fields[b"m"].decode() for _, fields in entries]
        assert sorted(logged) == sorted(member for member, state in self.state.items() if state in FINAL)

    def teardown(self) -> None:
        """Check that parked rollouts can run once nothing is parked; a suspect may have to wait a moment."""
        assert self._do(self.audits.adopt(self.batch_id)).members == ()
        while True:
            before = len(self.handed_over)
            self.take(most=50, parked=set(), suspects=True)
            if len(self.handed_over) == before:
                break
        waiting = {member for member, state in self.state.items() if state is RolloutState.QUEUED} - self.handed_over
        assert waiting <= self.suspects.keys()
        ended = self._do(self.batches.status(self.batch_id)).ended
        assert ended == (self.sealed and all(state in FINAL for state in self.state.values()))
        self._do(activate(self.store, self.batch_id))
        self._do(self.store.close())
        self.loop.close()


def _members(row: bytes, first: bytes, end: bytes) -> list[str]:
    return [f"{int(row)}:{sample}" for sample in range(int(first), int(end))]


@pytest.mark.timeout(300)
def test_every_transition_agrees_with_the_model(redis_url: str) -> None:
    Farm.redis_url = redis_url
    run_state_machine_as_test(
        Farm,
        settings=settings(
            max_examples=settings.default.max_examples // 3,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
