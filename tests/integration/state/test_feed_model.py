"""Leases and acknowledgements against a model of the same rules in memory, driven by hypothesis.

Every result is delivered at least once, and not again after its acknowledgement, whatever dies, expires, or is taken
back and run again. The clock is moved by moving the ends of leases.
"""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from gym.results.blobs import BlobStore
from gym.state.ledger.batches import Batches
from gym.state.ledger.feed import Feed, LeaseUnit, ResultLease
from gym.state.ledger.rollouts import Commit, Rollouts
from gym.state.ledger.submission import NewBatch, StagedRow, Staging
from gym.state.redis.store import Store
from gym.task import RowHeader

SAMPLES = 2
TTL_S = 10_000.0
UNITS = {"a": LeaseUnit.ROLLOUT, "b": LeaseUnit.ROLLOUT, "groups": LeaseUnit.GROUP}
Result = tuple[str, int]  # member, attempt
Unit = frozenset[Result]
_numbers = itertools.count()


@dataclass
class Consumer:
    """State of a consumer by the rules. Units are sets of results: one, or those of a group."""

    out: dict[Unit, str] = field(default_factory=dict)  # to its last lease
    expired: set[Unit] = field(default_factory=set)
    acked: set[Unit] = field(default_factory=set)
    leases: dict[str, list[Unit]] = field(default_factory=dict)  # as a process of it saw them
    ended: set[str] = field(default_factory=set)  # expired leases


class Trainer(RuleBasedStateMachine):
    """One batch, three consumers."""

    redis_url = ""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.store = Store.connect(self.redis_url)
        self.batches, self.rollouts = Batches(self.store), Rollouts(self.store)
        self.feed = Feed(self.store, BlobStore(None, inline_bytes=0))
        self.batch_id = f"feed-{next(_numbers)}"
        self.standing: dict[str, Result] = {}  # by member
        self.failed: set[str] = set()
        self.rows = 0
        self.sealed = False
        self.names = (f"lease-{number:04}" for number in itertools.count())  # hypothesis needs the same ones each time
        self.consumers = {name: Consumer() for name in UNITS}
        self.submit(2)

    def _do(self, coroutine: Any) -> Any:
        return self.loop.run_until_complete(coroutine)

    @precondition(lambda self: not self.sealed and self.rows < 8)
    @rule(rows=st.integers(1, 3))
    def submit(self, rows: int) -> None:
        self._do(self._submit(rows))
        self.rows += rows

    async def _submit(self, rows: int) -> None:
        staging = Staging(self.store, self.batch_id)
        header = RowHeader(task_id=None, environment="weather", num_samples=SAMPLES)
        await staging.add([StagedRow(header=header, raw=b"{}", digest="")] * rows)
        spec = NewBatch(spec={}, digest="d", run="r", priority=5, weight=1.0, policy="p")
        await staging.publish(create=spec if self.rows == 0 else None, seal=False)

    @rule()
    def seal(self) -> None:
        self._do(self.batches.seal(self.batch_id))
        self.sealed = True

    @rule(most=st.integers(1, 6), failing=st.booleans(), backwards=st.booleans())
    def produce(self, most: int, failing: bool, backwards: bool) -> None:
        self._do(self._produce(most, failing=failing, backwards=backwards))

    async def _produce(self, most: int, *, failing: bool, backwards: bool = False) -> None:
        wanted = [(one.member, one.attempt) for one in await self.rollouts.take(self.batch_id, most)]
        claims = await self.rollouts.claim(self.batch_id, "w", wanted)
        for claim in reversed(claims) if backwards else claims:
            record = {"rollout_id": f"{self.batch_id}:{claim.member}", "attempt": claim.attempt}
            commit = Commit(
                outcome="failed" if failing else "succeeded", record=orjson.dumps(record), trajectory=b"",
                usable=not failing, early_stop=0, sums={},
            )  # fmt: skip
            [answer] = await self.store.run_many([self.rollouts.commit_call(claim, commit)])
            assert answer[0] == 1
            self.standing[claim.member] = (claim.member, claim.attempt)
            if failing:
                self.failed.add(claim.member)

    @precondition(lambda self: self.failed)
    @rule(data=st.data())
    def requeue(self, data: st.DataObject) -> None:
        """Take a failed result back; its next attempt gives a new one."""
        member = data.draw(st.sampled_from(sorted(self.failed)))
        attempt = self.standing.pop(member)[1]
        self.failed.discard(member)
        tries = b"{}\n" * attempt
        assert self._do(self.batches.requeue(self.batch_id, [(member, attempt, "weather", tries)])) == 1

    def _units(self, name: str) -> set[Unit]:
        """Return all present results as this consumer's units."""
        if UNITS[name] is LeaseUnit.ROLLOUT:
            return {frozenset([result]) for result in self.standing.values()}
        rows = [[f"{row}:{sample}" for sample in range(SAMPLES)] for row in range(self.rows)]
        return {frozenset(self.standing[m] for m in row) for row in rows if all(m in self.standing for m in row)}

    @rule(
        name=st.sampled_from(sorted(UNITS)),
        most=st.integers(1, 5),
        read=st.booleans(),
        late=st.booleans(),
        data=st.data(),
    )
    def lease(self, name: str, most: int, read: bool, late: bool, data: st.DataObject) -> None:
        """Lease as a process of a consumer; the process may die, or the answer get lost.

        Its repeat may come after the end of the lease: then it is a new one.
        """
        consumer = self.consumers[name]
        lease_id = data.draw(st.sampled_from(sorted(consumer.ended))) if late and consumer.ended else None
        if lease_id is not None:
            consumer.leases.pop(lease_id, None)
            consumer.ended.discard(lease_id)
        lease = self._lease(name, most, lease_id)
        units = self._units_of(name, lease)
        available = self._units(name) - consumer.acked - (set(consumer.out) - consumer.expired)
        assert set(units) <= available
        assert len(units) == len(set(units)) == min(most, len(available))
        self._handed_out(consumer, lease.lease_id, units, read=read)
        finished = self._do(self.batches.status(self.batch_id)).ended and self._units(name) <= consumer.acked
        if lease.done or not consumer.out:  # results that were taken back may still be leased
            assert lease.done == finished

    def _lease(self, name: str, most: int, lease_id: str | None = None) -> ResultLease:
        asked = lease_id or next(self.names)
        lease: ResultLease = self._do(
            self.feed.lease(self.batch_id, name, most=most, ttl_s=TTL_S, unit=UNITS[name], lease_id=asked)
        )
        return lease

    def _units_of(self, name: str, lease: ResultLease) -> list[Unit]:
        records = [orjson.loads(record) for record in lease.records]
        results = [(record["rollout_id"].removeprefix(f"{self.batch_id}:"), record["attempt"]) for record in records]
        size = 1 if UNITS[name] is LeaseUnit.ROLLOUT else SAMPLES
        return [frozenset(results[first : first + size]) for first in range(0, len(results), size)]

    @staticmethod
    def _handed_out(consumer: Consumer, lease_id: str, units: list[Unit], *, read: bool) -> None:
        for unit in units:
            consumer.out[unit] = lease_id
            consumer.expired.discard(unit)
        if read:
            consumer.leases[lease_id] = units

    @rule(name=st.sampled_from(sorted(UNITS)), data=st.data())
    def ask_again(self, name: str, data: st.DataObject) -> None:
        """Repeat a lease while it lasts: it returns the units under it that are still valid."""
        consumer = self.consumers[name]
        lasting = {lease_id for unit, lease_id in consumer.out.items() if unit not in consumer.expired}
        if not lasting:
            return
        lease_id = data.draw(st.sampled_from(sorted(lasting)))
        lasting_units = {u for u, own in consumer.out.items() if own == lease_id} - consumer.expired
        expected = lasting_units & self._units(name)
        if not expected:
            return
        units = self._units_of(name, self._lease(name, 1, lease_id))
        assert sorted(map(sorted, units)) == sorted(map(sorted, expected))
        self._handed_out(consumer, lease_id, units, read=True)

    @rule(name=st.sampled_from(sorted(UNITS)))
    def time_passes(self, name: str) -> None:
        """End all leases of a consumer."""
        self._do(self._expire(name))
        consumer = self.consumers[name]
        consumer.expired = set(consumer.out)
        consumer.ended = set(consumer.out.values())

    async def _expire(self, name: str) -> None:
        now = await self.store.now_ms()
        _, out, _, ends = self.store.keys.batch(self.batch_id).feed(name)
        for key in (out, ends):
            for item in await self.store.redis.zrange(key, 0, -1):
                await self.store.redis.zadd(key, {item: now - 1})

    @rule(name=st.sampled_from(sorted(UNITS)), data=st.data(), how=st.sampled_from(["lease", "rollouts", "both"]))
    def ack(self, name: str, data: st.DataObject, how: str) -> None:
        """Acknowledge what a process has read, perhaps twice, perhaps after its lease has ended."""
        consumer = self.consumers[name]
        if not consumer.leases:
            return
        lease_id = data.draw(st.sampled_from(sorted(consumer.leases)))
        units = consumer.leases[lease_id]
        if how != "lease":
            units = data.draw(st.lists(st.sampled_from(units), unique=True)) if units else []
        named = [f"{self.batch_id}:{member}" for unit in units for member, _ in unit]
        acked = self._do(
            self.feed.ack(
                self.batch_id,
                name,
                lease_id=lease_id if how != "rollouts" else None,
                rollout_ids=named if how != "lease" else None,
            )
        )
        if how == "rollouts":  # by name, present results are acknowledged if they were leased
            members = {member for unit in units for member, _ in unit}
            units = [unit for unit in consumer.out if {member for member, _ in unit} <= members]
        fresh = [unit for unit in units if unit in consumer.out]
        standing = [unit for unit in fresh if unit in self._units(name)]
        if how == "lease":  # results that were taken back count while they are leased
            assert sum(map(len, standing)) <= acked <= sum(map(len, fresh))
        else:
            assert acked == sum(map(len, standing))
        for unit in fresh if how == "lease" else standing:
            consumer.acked.add(unit)
            consumer.out.pop(unit)
            consumer.expired.discard(unit)

    def teardown(self) -> None:
        self._do(self.batches.seal(self.batch_id))
        self._do(self._produce(100, failing=False))
        for name, consumer in self.consumers.items():
            self._do(self._expire(name))
            handed: set[Unit] = set()
            while True:
                lease = self._lease(name, 3)
                if not lease.records:
                    break
                handed |= set(self._units_of(name, lease))
                self._do(self.feed.ack(self.batch_id, name, lease_id=lease.lease_id))
            assert lease.done
            assert handed == self._units(name) - consumer.acked
        self._do(self.store.close())
        self.loop.close()


@pytest.mark.timeout(300)
def test_every_result_reaches_every_consumer_until_it_is_acknowledged(redis_url: str) -> None:
    Trainer.redis_url = redis_url
    run_state_machine_as_test(
        Trainer,
        settings=settings(
            max_examples=settings.default.max_examples // 3,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
