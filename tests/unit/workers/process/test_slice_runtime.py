"""The life of a slice, with neither Redis nor Celery nor processes."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from gym.batch import BatchSpec
from gym.jsontypes import JsonObject
from gym.state.assignments import Told
from gym.state.ledger.breakers import BreakerKey, BreakerKind
from gym.state.ledger.rollouts import ClaimedRollout
from gym.state.redis.driver import ResponseError
from workers.process import slice_runtime
from workers.process.held_rollouts import HeldRollouts
from workers.process.slice_runtime import Slice, SliceRuntime
from workers.process.slots import Slots

pytestmark = pytest.mark.anyio
PROBE = BreakerKey(BreakerKind.POLICY, "p")
SPEC = BatchSpec(run="default")


@dataclass(frozen=True)
class Claim:
    batch_id: str
    member: str
    attempt: int = 1
    token: str = "t"


@dataclass(eq=False)
class Run:
    """A run that ends when `finish` is set."""

    claim: Claim
    probe: BreakerKey | None = None
    alone: bool = False
    loose: bool = False
    committing: bool = False
    stopping: bool = False
    stalled: bool = False
    give_up_at: float = math.inf
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    finish: asyncio.Event = field(default_factory=asyncio.Event)
    ignores_cancellation: bool = False

    def stop(self, task: asyncio.Task[None]) -> None:
        self.stopping = True
        task.cancel()

    def find_stalled(self, now: float) -> bool:
        return self.stalled


class Work:
    """A `SliceWork` that records its calls."""

    def __init__(self, held: HeldRollouts[Run]) -> None:
        self.held = held
        self.parked = False
        self.gone = False
        self.claim_errors: list[Exception] = []
        self.claim_ids: list[str] = []
        self.claim_gate: asyncio.Event | None = None
        self.on_prepare: Callable[[], None] = lambda: None
        self.held_while_claiming: set[tuple[str, str, str]] = set()
        self.hand_back_error: Exception | None = None
        self.fault: Exception | None = None
        self.runs: dict[str, Run] = {}
        self.committed: list[str] = []
        self.cut: list[str] = []
        self.handed_back: list[str] = []
        self.bounced: list[str] = []
        self.lost_probes: list[BreakerKey] = []
        self.compared_with: list[Told | None] = []
        self.hung = 0
        self.steps: list[str] = []

    async def open(self) -> Mapping[str, Coroutine[Any, Any, None]]:
        self.steps.append("open")

        async def service() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                self.steps.append("service ended")

        return {"service": service()}

    async def settle(self) -> None:
        self.steps.append("settle")

    async def close(self) -> None:
        self.steps.append("close")

    def describe(self) -> JsonObject:
        return {"role": "test"}

    async def spec(self, batch_id: str) -> BatchSpec | None:
        return None if self.gone else SPEC

    def is_parked(self, job: Slice[int], spec: BatchSpec) -> bool:
        return self.parked

    async def bounce(self, job: Slice[int]) -> None:
        self.bounced += [member for member, _ in job.wanted]

    async def claim(self, job: Slice[int], here: set[str]) -> Sequence[Claim]:
        self.claim_ids.append(job.claim_id)
        self.held_while_claiming = self.held.names()
        if self.claim_gate is not None:
            await self.claim_gate.wait()
        if self.claim_errors:
            raise self.claim_errors.pop(0)
        return [Claim(job.batch_id, member) for member, _ in job.wanted if member not in here]

    def make(self, claim: Claim, spec: BatchSpec, probe: BreakerKey | None) -> Run:
        run = self.runs[claim.member] = Run(claim, probe)
        return run

    async def prepare(self, runs: Sequence[Run], probe: BreakerKey | None) -> None:
        self.on_prepare()

    async def run(self, run: Run) -> None:
        while not run.finish.is_set():
            try:
                await run.finish.wait()
            except asyncio.CancelledError:
                if not run.ignores_cancellation:
                    raise
        if run.loose:
            return
        run.committing = True
        if self.fault is not None:
            raise self.fault
        self.committed.append(run.claim.member)

    async def cut_off(self, run: Run) -> None:
        self.cut.append(run.claim.member)

    async def hand_back(self, runs: Sequence[Run]) -> None:
        if self.hand_back_error is not None:
            raise self.hand_back_error
        self.handed_back += [run.claim.member for run in runs]

    async def probe_lost(self, probe: BreakerKey) -> None:
        self.lost_probes.append(probe)

    def relieve(self) -> int:
        return self.hung

    async def compared(self, told: Told | None) -> None:
        self.compared_with.append(told)


class Farm:
    """The runtime with its parts, all of them in memory."""

    def __init__(self, *, slots: int = 4, most_hung: int = 2) -> None:
        self.slots = Slots(slots)
        self.held: HeldRollouts[Run] = HeldRollouts()
        self.work = Work(self.held)
        self.void: set[str] = set()
        self.redis = True
        self.on_check: Callable[[], None] = lambda: None
        self.exhausted = 0
        self.runtime: SliceRuntime[Claim, Run, int] = SliceRuntime(
            self.work,
            self.held,
            worker="w",
            slots=self.slots,
            ledger=self,
            unheld=self,
            answers=self.answers,
            most_hung=most_hung,
            on_exhausted=self.count_exhausted,
        )

    async def still_mine(self, claims: Sequence[ClaimedRollout], worker: str | None = None) -> list[bool]:
        assert worker == "w"
        self.on_check()
        return [claim.member not in self.void for claim in claims]

    async def hand_back_when_due(self) -> Told | None:
        return Told()

    async def answers(self, within_s: float) -> bool:
        return self.redis

    def count_exhausted(self) -> None:
        self.exhausted += 1

    def receive(self, *members: str, probe: BreakerKey | None = None) -> asyncio.Task[int]:
        """Reserve slots, as Celery's consumer does, and run the job."""
        self.slots.reserve(len(members))
        job = Slice(batch_id="b", wanted=[(member, 1) for member in members], probe=probe)
        return asyncio.create_task(self.runtime.run(job))

    async def begun(self, *members: str, probe: BreakerKey | None = None) -> asyncio.Task[int]:
        """Receive a job, and wait until all of its rollouts run."""
        job = self.receive(*members, probe=probe)
        async with asyncio.timeout(5):
            while len(self.held.running) < len(members):  # noqa: ASYNC110  the registry has no event for it
                await asyncio.sleep(0)
        await asyncio.sleep(0)
        return job


async def within(job: asyncio.Task[int]) -> int:
    async with asyncio.timeout(5):
        return await job


async def test_a_slice_is_run_side_by_side_and_each_slot_is_freed_when_its_rollout_ends() -> None:
    farm = Farm()
    job = await farm.begun("0", "1")
    farm.work.runs["0"].finish.set()
    async with asyncio.timeout(5):
        await farm.work.runs["0"].ended.wait()
    assert (farm.slots.taken, job.done()) == (1, False)
    farm.work.runs["1"].finish.set()
    assert await within(job) == 2
    assert (farm.slots.taken, farm.work.committed, farm.held.ended) == (0, ["0", "1"], 2)


@pytest.mark.parametrize("why", ["draining", "parked"])
async def test_a_slice_that_may_not_start_goes_back_unclaimed(why: str) -> None:
    farm = Farm()
    if why == "draining":
        farm.runtime.begin_drain()
    farm.work.parked = why == "parked"
    assert await within(farm.receive("0", "1")) == 0
    assert (farm.work.bounced, farm.work.claim_ids, farm.slots.taken) == (["0", "1"], [], 0)


async def test_a_slice_of_a_batch_that_is_gone_is_dropped() -> None:
    farm = Farm()
    farm.work.gone = True
    assert await within(farm.receive("0")) == 0
    assert (farm.work.bounced, farm.work.claim_ids, farm.slots.taken) == ([], [], 0)


async def test_a_probe_runs_although_its_breaker_is_open() -> None:
    farm = Farm()
    farm.work.parked = True
    job = await farm.begun("0", probe=PROBE)
    farm.work.runs["0"].finish.set()
    assert await within(job) == 1
    assert farm.work.lost_probes == []


async def test_a_probe_that_is_not_started_is_reported_as_lost() -> None:
    farm = Farm()
    farm.work.claim_errors = [ResponseError("wrong")]
    assert await within(farm.receive("0", probe=PROBE)) == 0
    assert (farm.work.lost_probes, farm.slots.taken) == ([PROBE], 0)


async def test_a_claim_is_asked_for_again_under_the_same_id_until_redis_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(slice_runtime, "AGAIN_S", 0)
    farm = Farm()
    farm.work.claim_errors = [RedisConnectionError("away"), RedisConnectionError("away")]
    job = await farm.begun("0")
    assert len(farm.work.claim_ids) == 3
    assert len(set(farm.work.claim_ids)) == 1
    farm.work.runs["0"].finish.set()
    assert await within(job) == 1


async def test_a_drain_ends_the_wait_for_a_claim() -> None:
    farm = Farm()
    farm.work.claim_errors = [RedisConnectionError("away")]
    farm.work.claim_gate = asyncio.Event()
    job = farm.receive("0")
    await asyncio.sleep(0)
    farm.runtime.begin_drain()
    farm.work.claim_gate.set()
    assert await within(job) == 0
    assert (farm.slots.taken, len(farm.work.claim_ids)) == (0, 1)


@pytest.mark.parametrize("step", ["claim", "prepare"])
async def test_what_was_claimed_when_a_drain_began_is_handed_back_and_never_started(step: str) -> None:
    farm = Farm()
    farm.work.claim_gate = asyncio.Event()
    job = farm.receive("0", "1")
    await asyncio.sleep(0)
    if step == "claim":
        farm.runtime.begin_drain()
    else:
        farm.work.on_prepare = farm.runtime.begin_drain
    farm.work.claim_gate.set()
    assert await within(job) == 0
    assert (farm.work.handed_back, farm.held.running, farm.slots.taken) == (["0", "1"], {}, 0)


async def test_a_job_that_is_delivered_twice_runs_once_and_frees_all_of_its_slots() -> None:
    farm = Farm()
    first = await farm.begun("0")
    assert await within(farm.receive("0")) == 0
    assert farm.slots.taken == 1
    farm.work.runs["0"].finish.set()
    assert await within(first) == 1
    assert (farm.slots.taken, farm.work.committed) == (0, ["0"])


async def test_a_rollout_is_held_from_before_its_claim_until_its_end() -> None:
    farm = Farm()
    job = await farm.begun("0")
    assert farm.work.held_while_claiming == {("b", "0", "")}
    assert farm.held.names() == {("b", "0", "t")}
    farm.work.runs["0"].finish.set()
    await within(job)
    assert farm.held.names() == set()


async def test_a_member_that_two_jobs_claim_is_held_until_the_last_of_them_is_over() -> None:
    held: HeldRollouts[Run] = HeldRollouts()
    with held.claiming("b", ["0", "1"]) as here:
        assert here == set()
        with held.claiming("b", ["0"]) as again:
            assert again == {"0", "1"}
        assert held.names() == {("b", "0", ""), ("b", "1", "")}
    assert held.names() == set()


async def test_claims_that_wait_are_held_and_no_longer_once_they_are_taken_out() -> None:
    held: HeldRollouts[Run] = HeldRollouts()
    left = [Claim("b", "0"), Claim("b", "1")]
    with held.waiting(left):
        del left[0]
        assert held.names() == {("b", "1", "t")}
    assert held.names() == set()


async def test_a_run_whose_claim_is_void_is_stopped_and_the_others_go_on() -> None:
    farm = Farm()
    job = await farm.begun("0", "1")
    farm.void = {"0"}
    await farm.runtime.look(time.monotonic())
    async with asyncio.timeout(5):
        await farm.work.runs["0"].ended.wait()
    assert (farm.slots.taken, farm.work.runs["1"].stopping) == (1, False)
    farm.work.runs["1"].finish.set()
    assert await within(job) == 2
    assert farm.work.committed == ["1"]


async def test_nothing_interrupts_a_commit() -> None:
    farm = Farm()
    job = await farm.begun("0", "1")
    first, second = farm.work.runs["0"], farm.work.runs["1"]
    first.committing = first.stalled = True
    first.give_up_at = 0
    farm.void = {"0", "1"}
    farm.on_check = lambda: setattr(second, "committing", True)  # while Redis is asked
    await farm.runtime.look(time.monotonic())
    drain = asyncio.create_task(farm.runtime.drain(0))
    async with asyncio.timeout(5):
        while not farm.runtime.draining:  # noqa: ASYNC110
            await asyncio.sleep(0)
    first.finish.set()
    second.finish.set()
    assert await within(job) == 2
    async with asyncio.timeout(5):
        await drain
    assert (first.stopping, second.stopping, farm.work.cut, farm.work.handed_back) == (False, False, [], [])
    assert farm.work.committed == ["0", "1"]


async def test_a_stalled_run_is_stopped_once() -> None:
    farm = Farm()
    job = await farm.begun("0")
    farm.work.runs["0"].stalled = True
    await farm.runtime.look(time.monotonic())
    assert farm.work.runs["0"].stopping
    assert await within(job) == 1
    assert (farm.slots.taken, farm.work.committed) == (0, [])


async def test_an_overdue_run_is_cut_loose_recorded_without_its_task_and_frees_its_slot_once() -> None:
    farm = Farm()
    job = await farm.begun("0")
    run = farm.work.runs["0"]
    run.ignores_cancellation = True
    run.give_up_at = 0
    await farm.runtime.look(time.monotonic())
    assert await within(job) == 1
    assert (farm.work.cut, farm.slots.taken, len(farm.held.loose), farm.held.ended) == (["0"], 0, 1, 1)
    run.finish.set()
    async with asyncio.timeout(5):
        await asyncio.wait(farm.held.loose.copy())
    await asyncio.sleep(0)
    assert (farm.work.committed, farm.slots.taken, farm.held.loose, farm.held.ended) == ([], 0, set(), 1)


async def test_a_worker_in_which_too_much_hangs_ends_once() -> None:
    farm = Farm(most_hung=2)
    job = await farm.begun("0")
    run = farm.work.runs["0"]
    run.give_up_at = 0
    await farm.runtime.look(time.monotonic())
    assert (farm.runtime.exhausted, farm.exhausted) == (False, 0)
    farm.work.hung = 1
    await farm.runtime.look(time.monotonic())
    await farm.runtime.look(time.monotonic())
    assert (farm.runtime.exhausted, farm.exhausted) == (True, 1)
    run.finish.set()
    await within(job)


async def test_a_run_that_raises_frees_its_slot() -> None:
    farm = Farm()
    farm.work.fault = ValueError("odd")
    job = await farm.begun("0")
    farm.work.runs["0"].finish.set()
    assert await within(job) == 1
    assert farm.slots.taken == 0


async def test_a_run_that_runs_alone_takes_no_slot() -> None:
    farm = Farm()
    run = Run(Claim("b", "0"), alone=True)
    farm.runtime.start(run)
    run.finish.set()
    async with asyncio.timeout(5):
        await run.ended.wait()
    assert farm.slots.taken == 0


async def test_each_look_compares_with_redis_until_a_drain_begins() -> None:
    farm = Farm()
    await farm.runtime.look(time.monotonic())
    farm.runtime.begin_drain()
    await farm.runtime.look(time.monotonic())
    assert farm.work.compared_with == [Told()]


async def test_a_look_survives_an_absent_redis() -> None:
    farm = Farm()
    job = await farm.begun("0")

    def away() -> None:
        raise RedisConnectionError("away")

    farm.on_check = away
    await farm.runtime.look(time.monotonic())
    assert farm.work.compared_with == []
    farm.work.runs["0"].finish.set()
    assert await within(job) == 1


async def test_a_drain_waits_for_runs_that_end_in_time_and_takes_no_more() -> None:
    farm = Farm()
    job = await farm.begun("0")
    drain = asyncio.create_task(farm.runtime.drain(30))
    await asyncio.sleep(0)
    assert not farm.slots.has_room()
    farm.work.runs["0"].finish.set()
    assert await within(job) == 1
    async with asyncio.timeout(5):
        await drain
    assert (farm.work.committed, farm.work.handed_back) == (["0"], [])


async def test_a_drain_stops_what_is_left_and_hands_it_back() -> None:
    farm = Farm()
    job = await farm.begun("0", "1")
    async with asyncio.timeout(5):
        await farm.runtime.drain(0)
    assert await within(job) == 2
    assert (farm.work.handed_back, farm.work.committed, farm.slots.taken) == (["0", "1"], [], 0)


async def test_a_drain_without_redis_leaves_rollouts_to_their_lease() -> None:
    farm = Farm()
    farm.redis = False
    job = await farm.begun("0")
    farm.work.runs["0"].committing = True  # it could not be committed anyway
    async with asyncio.timeout(5):
        await farm.runtime.drain(0)
    assert await within(job) == 1
    assert (farm.work.handed_back, farm.slots.taken) == ([], 0)


@pytest.mark.parametrize("error", [RedisConnectionError("away"), TimeoutError()])
async def test_a_drain_whose_hand_back_fails_still_ends(error: Exception) -> None:
    farm = Farm()
    farm.work.hand_back_error = error
    job = await farm.begun("0")
    async with asyncio.timeout(5):
        await farm.runtime.drain(0)
    assert await within(job) == 1
    assert farm.slots.taken == 0


async def test_services_end_before_the_connection_that_they_use() -> None:
    farm = Farm()
    await farm.runtime.open()
    await asyncio.sleep(0)
    await farm.runtime.close()
    assert farm.work.steps == ["open", "settle", "service ended", "close"]
    assert farm.runtime.describe() == {"ended": 0, "draining": False, "role": "test"}
