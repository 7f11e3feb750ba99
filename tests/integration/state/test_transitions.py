"""The scripts against a model of the same rules in memory, driven by hypothesis.

Every step checks that the ledger balances, that each ended rollout is in the log once, and that the states agree.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from gym.ids import GroupRef, parse_member
from gym.rollout import TRANSITIONS, RolloutState
from gym.state.audit import Audits
from gym.state.batches import Batches, activate
from gym.state.rollouts import Claim, Commit, Rollouts
from gym.state.store import Store
from gym.state.submission import NewBatch, StagedRow, Staging
from gym.task import RowHeader
from workers.suspicion import Surroundings, examine

MAX_ATTEMPTS = 2
SAMPLES = 3
FINAL = {state for state in RolloutState if state in ("succeeded", "failed", "cancelled", "expired")}
_numbers = itertools.count()


class Farm(RuleBasedStateMachine):
    """One batch with `early_stop` at 2 usable rollouts of a group of 3."""

    redis_url = ""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.store = Store.connect(self.redis_url)
        self.batches, self.rollouts = Batches(self.store), Rollouts(self.store)
        self.audits = Audits(self.store)
        self.batch_id = f"model-{next(_numbers)}"
        self.state: dict[str, RolloutState] = {}
        self.tries: Counter[str] = Counter()
        self.in_celery: list[tuple[str, int]] = []
        self.claims: list[tuple[str, Claim]] = []  # of every claim ever made, void ones too
        self.usable: Counter[str] = Counter()
        self.replays: dict[str, bytes] = {}  # of attempts that were handed back
        self.cancelled = self.sealed = False
        self.rows = 0
        self.buried: set[str] = set()  # cancelled before they came
        self._do(self._submit(2, create=True))

    def _do(self, coroutine: Any) -> Any:
        return self.loop.run_until_complete(coroutine)

    async def _submit(self, rows: int, *, create: bool) -> None:
        staging = Staging(self.store, self.batch_id)
        header = RowHeader(task_id=None, environment="weather", num_samples=SAMPLES)
        await staging.add([StagedRow(header=header, raw=b"{}", digest="")] * rows)
        spec = NewBatch(spec={}, digest="d", run="r", priority=5, weight=1.0, policy="p")
        await staging.publish(create=spec if create else None, seal=False)
        for row in range(self.rows, self.rows + rows):
            for sample in range(SAMPLES):
                self.state[f"{row}:{sample}"] = RolloutState.QUEUED
        self.rows += rows
        self._stop([member for member in self.state if member in self.buried])

    def _move(self, member: str, to: RolloutState) -> None:
        assert to in TRANSITIONS[self.state[member]], f"{member}: {self.state[member]} to {to}"
        self.state[member] = to

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

    @rule(most=st.integers(1, 5))
    def take(self, most: int) -> None:
        for taken in self._do(self.rollouts.take(self.batch_id, most)):
            assert self.state[taken.member] is RolloutState.QUEUED
            assert taken.attempt == self.tries[taken.member] + 1
            self.in_celery.append((taken.member, taken.attempt))

    @precondition(lambda self: self.in_celery)
    @rule(data=st.data(), worker=st.sampled_from(["w1", "w2"]), again=st.booleans())
    def claim(self, data: st.DataObject, worker: str, again: bool) -> None:
        """A message arrives, perhaps for a second time."""
        message = data.draw(st.sampled_from(self.in_celery))
        if not again:
            self.in_celery.remove(message)
        for claim in self._do(self.rollouts.claim(self.batch_id, worker, [message])):
            assert claim.replay == self.replays.get(claim.member, b"")
            held = {other.token for owner, other in self.claims if owner == worker and self._stands(other)}
            if claim.token in held:
                continue  # it holds the rollout already, and is told so again
            self._move(claim.member, RolloutState.RUNNING)
            self.claims.append((worker, claim))

    @precondition(lambda self: self.in_celery)
    @rule(data=st.data())
    def bounce(self, data: st.DataObject) -> None:
        """A draining worker gives a message back, perhaps one that has been claimed elsewhere."""
        member, attempt = data.draw(st.sampled_from(self.in_celery))
        self._do(self.rollouts.bounce(self.batch_id, [(member, attempt)]))

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), outcome=st.sampled_from(["succeeded", "failed"]), twice=st.booleans())
    def commit(self, data: st.DataObject, outcome: str, twice: bool) -> None:
        """A worker commits, perhaps a zombie, perhaps twice since it lost the answer."""
        _, claim = data.draw(st.sampled_from(self.claims))
        commit = Commit(
            outcome=outcome, record=b"{}", trajectory=b"", usable=outcome == "succeeded", early_stop=2, sums={}
        )
        stands = self._stands(claim)
        call = self.rollouts.commit_call(claim, commit)
        answers = self._do(self.store.run_many([call, call] if twice else [call]))
        if not stands:
            assert [answer[0] for answer in answers].count(1) == 0
            return
        assert [answer[0] for answer in answers] == ([1, 2] if twice else [1])
        self._move(claim.member, RolloutState(outcome))
        self.replays.pop(claim.member, None)
        row = claim.member.partition(":")[0]
        if outcome == "succeeded":
            self.usable[row] += 1
            if self.usable[row] == 2:
                self._stop([f"{row}:{sample}" for sample in range(SAMPLES)])

    def _stop(self, members: list[str]) -> None:
        for member in members:
            if self.state[member] not in FINAL:
                self._move(member, RolloutState.CANCELLED)
                self.replays.pop(member, None)

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), used_up=st.booleans(), replay=st.sampled_from([b"", b"one", b"two"]))
    def give_up(self, data: st.DataObject, used_up: bool, replay: bytes) -> None:
        """An attempt fails and is repeated, or a draining worker hands it back with what it has."""
        _, claim = data.draw(st.sampled_from(self.claims))
        stands = self._stands(claim)
        call = self.rollouts.retry_call(claim, b"{}" if used_up else b"", 0, replay=replay)
        answer = self._do(self.store.run_many([call]))
        assert answer == [int(stands)]
        if stands:
            self._move(claim.member, RolloutState.QUEUED)
            self.tries[claim.member] += used_up
            if used_up:
                self.replays.pop(claim.member, None)
            elif replay:
                self.replays[claim.member] = replay

    @rule(worker=st.sampled_from(["w1", "w2"]), resend=st.booleans())
    def recover(self, worker: str, resend: bool) -> None:
        """A worker died; perhaps the broker lost its messages as well."""
        overdue = 2**53 if resend else 0
        self._do(
            self.rollouts.recover(self.batch_id, overdue_ms=overdue, max_attempts=MAX_ATTEMPTS, dead_workers=[worker])
        )
        for owner, claim in self.claims:
            if owner == worker and self._stands(claim):
                used_up = claim.attempt >= MAX_ATTEMPTS
                self._move(claim.member, RolloutState.FAILED if used_up else RolloutState.QUEUED)
                self.tries[claim.member] += 1
                self.replays.pop(claim.member, None)

    @rule(row=st.integers(0, 3), sample=st.none() | st.integers(0, SAMPLES - 1))
    def cancel(self, row: int, sample: int | None) -> None:
        """A group or a rollout, there or yet to come."""
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
        around = Surroundings(
            workers={"w1", "w2"}, free_slots=1, rollout_timeout_s=600.0, lease_ttl_s=8.0, no_progress_s=60.0
        )
        assert examine(held, around) == []

    @invariant()
    def what_is_kept_for_a_replay_goes_with_its_attempt(self) -> None:
        kept = self._do(self.store.redis.hgetall(self.store.keys.batch(self.batch_id).traj))
        assert kept == {f"{member}|replay".encode(): replay for member, replay in self.replays.items()}

    @invariant()
    def each_outcome_once(self) -> None:
        entries = self._do(self.store.redis.xrange(self.store.keys.batch(self.batch_id).log))
        logged = [fields[b"m"].decode() for _, fields in entries]
        assert sorted(logged) == sorted(member for member, state in self.state.items() if state in FINAL)

    def teardown(self) -> None:
        assert self._do(self.audits.adopt(self.batch_id)) == []
        ended = self._do(self.batches.status(self.batch_id)).ended
        assert ended == (self.sealed and all(state in FINAL for state in self.state.values()))
        self._do(activate(self.store, self.batch_id))
        self._do(self.store.close())
        self.loop.close()


@pytest.mark.timeout(300)
def test_every_transition_agrees_with_the_model(redis_url: str) -> None:
    Farm.redis_url = redis_url
    run_state_machine_as_test(
        Farm,
        settings=settings(
            max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
