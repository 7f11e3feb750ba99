"""Bounds of scripts: a few milliseconds of work each, for any size of groups, batches, queues and requests."""

from __future__ import annotations

import re
import sys
from collections.abc import Awaitable, Callable, Sequence
from importlib.resources import files
from pathlib import Path

import pytest

from gym.captures.call import CallAnswer, CallRequest, OpenCall
from gym.captures.recording import Captures
from gym.ids import GroupRef, parse_member
from gym.jsontypes import JsonObject
from gym.results.blobs import BlobStore
from gym.state.assignments import Assignments
from gym.state.ledger.batches import Batches
from gym.state.ledger.cancellation import cancel, step_stops
from gym.state.ledger.ended_batches import DropReason, EndedBatches
from gym.state.ledger.feed import Feed, LeaseUnit
from gym.state.ledger.judging import Handover, JudgeClaim, Judging, RejudgedResult
from gym.state.ledger.publication import AT_ONCE
from gym.state.ledger.results import View
from gym.state.ledger.rollouts import Claim, Commit, Rollouts
from gym.state.ledger.submission import NewBatch, StagedRow, Staging
from gym.state.redis import store as stores
from gym.state.redis.store import Script, Store
from gym.state.repair.audit import MOST_BACKLOG, MOST_LIVE, Audits
from gym.state.repair.recall import Recalled, recall
from gym.state.repair.recount import recount
from gym.task import MAX_SAMPLES, RowHeader
from gym.trajectory import CallFacts, Usage
from tests.integration.state.metered import Metered

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]
MOST_CPU_MS = 20.0
"""Of one call, where a thousand small writes take `REFERENCE_MS`; in proportion where the machine is slower or busy."""

REFERENCE_MS = 2.0

MOST_COMMANDS = 6000
MOST_ARGUMENTS = 5000
SLICE = 64
ENVIRONMENT = "weather"


class Bench:
    """A batch `b`: `plain` prepares it, `metered` runs the measured calls."""

    def __init__(self, plain: Store, folder: Path) -> None:
        self.plain = plain
        self.metered = Metered(plain.redis, plain.keys)
        self.keys = plain.keys.batch("b")
        self.blobs = BlobStore(folder, inline_bytes=1000)
        self.rollouts, self.judging, self.batches = Rollouts(plain), Judging(plain), Batches(plain)
        self.measured, self.measured_judging = Rollouts(self.metered), Judging(self.metered)

    async def submit(
        self, rows: int, samples: int, *, named: bool = False, create: bool = True, store: Store | None = None
    ) -> None:
        staging = Staging(store or self.plain, "b")
        for first in range(0, rows, 1000):
            numbers = range(first, min(rows, first + 1000))
            headers = [
                RowHeader(task_id=f"t{number}" if named else None, environment=ENVIRONMENT, num_samples=samples)
                for number in numbers
            ]
            await staging.add([StagedRow(header=header, raw=b"{}", digest="d") for header in headers])
        spec = NewBatch(spec={}, digest="d", run="r", priority=5, weight=1.0, policy="p")
        await staging.publish(create=spec if create else None, seal=False)

    async def claim(self, most: int, rollouts: Rollouts | None = None) -> list[Claim]:
        claims: list[Claim] = []
        used = rollouts or self.rollouts
        while len(claims) < most:
            taken = await used.take("b", min(SLICE, most - len(claims)))
            claims += await used.claim("b", "w", [(item.member, item.attempt) for item in taken])
        return claims

    async def commit(self, claims: Sequence[Claim], outcome: str = "succeeded", early_stop: int = 0) -> None:
        record = Commit(
            outcome=outcome, record=b"{}", trajectory=b"", usable=True, early_stop=early_stop, sums={"reward": 1.0}
        )
        store = self.metered if early_stop else self.plain
        await store.run_many([self.rollouts.commit_call(claim, record) for claim in claims])

    async def ask(self, claims: Sequence[Claim], store: Store | None = None) -> None:
        handover = Handover(judge="j", record=b'{"padding": "%s"}' % (b"x" * 1000), ask=b"i", trajectory=b"")
        await (store or self.plain).run_many([self.judging.ask_call(claim, handover) for claim in claims])

    async def end(self) -> None:
        """End all rollouts of the batch."""
        await self.batches.seal("b")
        while (await cancel(self.plain, "b", "batch", "*", go_on=True)).left:
            pass

    async def park_one_by_one(self, samples: int) -> None:
        """Queue each sample of a group separately, since each was tried and its environment is parked."""
        claims = await self.claim(samples)
        await self.plain.run_many([self.rollouts.retry_call(claim, b"{}", 0.0) for claim in claims])
        while await self.plain.redis.zcard(self.keys.parked) < samples:
            await self.measured.take("b", SLICE, parked=[ENVIRONMENT])


@pytest.fixture
def bench(store: Store, tmp_path: Path) -> Bench:
    return Bench(store, tmp_path)


async def everything_is_in_lines_and_is_cancelled(bench: Bench) -> None:
    await bench.submit(4, MAX_SAMPLES)
    claims = await bench.claim(2000)
    await bench.ask(claims[:700])
    await bench.plain.run_many([bench.rollouts.retry_call(claim, b"{}", 60.0) for claim in claims[700:1400]])
    await bench.rollouts.take("b", 1, parked=[ENVIRONMENT])
    while (await cancel(bench.metered, "b", "batch", "*", go_on=True)).left:
        pass


async def a_group_that_lies_parked_in_single_samples_is_stopped(bench: Bench) -> None:
    await bench.submit(1, MAX_SAMPLES)
    await bench.park_one_by_one(MAX_SAMPLES)
    await Batches(bench.metered).cancel_rollout(parse_member("b", f"0:{MAX_SAMPLES - 1}"))
    await bench.measured.probe("b", environment=ENVIRONMENT, seed=12345, parked=[ENVIRONMENT])
    await Batches(bench.metered).cancel_group(GroupRef("b", 0))
    while await step_stops(bench.metered, "b"):
        pass
    assert (await bench.batches.status("b")).ledger.cancelled == MAX_SAMPLES


async def groups_reach_their_early_stop_at_once(bench: Bench) -> None:
    await bench.submit(SLICE, SLICE)
    claims = {claim.member: claim for claim in await bench.claim(SLICE * SLICE)}
    await bench.commit([claims[f"{row}:0"] for row in range(SLICE)], early_stop=1)
    while await step_stops(bench.metered, "b"):
        pass
    assert (await bench.batches.status("b")).ledger.cancelled == SLICE * (SLICE - 1)


async def groups_were_cancelled_before_they_came(bench: Bench) -> None:
    for row in range(200):
        await bench.batches.cancel_group(GroupRef("b", row))
    await bench.submit(201, 63)
    while not await bench.measured.take("b", SLICE):
        pass


async def retries_are_due_of_what_is_over(bench: Bench) -> None:
    await bench.submit(2, MAX_SAMPLES)
    members = {f"0:{sample}:{ENVIRONMENT}": 0 for sample in range(MAX_SAMPLES)}
    await bench.plain.redis.zadd(bench.keys.later, members)
    await bench.commit(await bench.claim(MAX_SAMPLES))
    for _ in range(3):
        await bench.measured.take("b", SLICE)
        await bench.measured.probe("b", environment=None, seed=0, parked=["another"])


async def a_worker_and_a_judge_worker_die_with_all_that_is_live(bench: Bench) -> None:
    await bench.submit(1, 3000)
    claims = await bench.claim(3000)
    await bench.ask(claims[:1500])
    sent = await bench.judging.take("b", "j", 1500)
    for first in range(0, len(sent), SLICE):
        await bench.judging.claim("b", "jw", str(first), sent[first : first + SLICE])
    await bench.measured.recover("b", overdue_ms=0, max_attempts=3, dead_workers=["w"])
    await bench.measured_judging.recover("b", overdue_ms=0, dead_workers=["jw"])
    assert (await bench.batches.status("b")).ledger.queued == 1500


async def all_of_a_long_line_is_judged(bench: Bench) -> None:
    await bench.submit(1, 2000)
    claims = await bench.claim(2000, bench.measured)
    await bench.ask(claims, bench.metered)
    await bench.measured_judging.park("b", "j", 60.0)
    await bench.measured_judging.release("b", "j")
    judged: list[JudgeClaim] = []
    while len(judged) < 1000:
        sent = await bench.measured_judging.take("b", "j", SLICE)
        judged += await bench.measured_judging.claim("b", "jw", str(len(judged)), sent)
    again = [bench.judging.again_call("b", one.member, one.token, b"{}", 0.0) for one in judged[:10]]
    assert await bench.metered.run_many(again) == [1] * 10


async def what_is_lost_is_searched_for(bench: Bench) -> None:
    await bench.submit(1, MAX_SAMPLES)
    await bench.submit(MOST_BACKLOG, 1, create=False)
    await bench.park_one_by_one(MOST_LIVE - MOST_BACKLOG - 1)
    await bench.claim(MOST_LIVE // 2)
    audits = Audits(bench.metered)
    await audits.count({"b": "0"})
    search = await audits.adopt("b")
    assert search is not None
    assert search.goes_on_at is None


async def a_large_request_is_published(bench: Bench) -> None:
    await bench.submit(AT_ONCE, 1, named=True, store=bench.metered)
    await bench.submit(AT_ONCE, 1, named=True, create=False, store=bench.metered)
    await bench.submit(20_000, 10, named=True, create=False, store=bench.metered)
    await Batches(bench.metered).seal("b")
    assert (await bench.batches.status("b")).ledger.submitted == AT_ONCE + (20_000 - AT_ONCE) * 10


async def all_that_failed_runs_again(bench: Bench) -> None:
    await bench.submit(1, 1000)
    claims = await bench.claim(1000)
    await bench.commit(claims, "failed")
    items = [(claim.member, claim.attempt, ENVIRONMENT, b"{}\n") for claim in claims]
    assert await Batches(bench.metered).requeue("b", items) == 1000


async def all_results_are_judged_again(bench: Bench) -> None:
    await bench.submit(1, 1000)
    await bench.ask(await bench.claim(1000))
    sent = await bench.judging.take("b", "j", 1000)
    claims = await bench.judging.claim("b", "jw", "c", sent)
    sums = {"scored": 1.0, "reward": 1.0, "passed": 1.0}
    record = Commit(outcome="succeeded", record=b"{}", trajectory=b"", usable=True, early_stop=0, sums=sums)
    await bench.plain.run_many([bench.rollouts.commit_call(claim, record) for claim in claims])
    log = await bench.plain.redis.xrange(bench.keys.log)
    items = [
        RejudgedResult(
            member=fields[b"m"].decode(),
            cursor=place.decode(),
            environment=ENVIRONMENT,
            judge="j",
            replaced=False,
            outcome="succeeded",
            sums=sums,
            record=b"{}" * 500,
        )
        for place, fields in log
    ]
    assert await bench.measured_judging.rejudge("b", items) == 1000


async def large_groups_are_leased_and_acknowledged(bench: Bench) -> None:
    await bench.submit(3, MAX_SAMPLES)
    await bench.submit(60, 200, create=False)
    await bench.end()
    feed = Feed(bench.metered, bench.blobs)
    log = await bench.plain.redis.xrange(bench.keys.log)
    await feed.groups_ended("b", [place.decode() for place, _ in log[-500:]])
    await feed.groups_ended("b", [place.decode() for place, _ in log[:: MAX_SAMPLES // 4]])
    lease = await feed.lease("b", "groups", most=5000, ttl_s=60, unit=LeaseUnit.GROUP, view=View.LIGHT)
    await feed.lease("b", "groups", most=5000, ttl_s=60, unit=LeaseUnit.GROUP, lease_id=lease.lease_id)
    assert await feed.ack("b", "groups", lease_id=lease.lease_id) == 3 * MAX_SAMPLES + 60 * 200
    await feed.lease("b", "named", most=5000, ttl_s=60, unit=LeaseUnit.GROUP)
    names = [f"b:{fields[b'm'].decode()}" for _, fields in log]
    assert await feed.ack("b", "named", rollout_ids=names) == 3 * MAX_SAMPLES + 60 * 200


async def many_results_are_leased_and_come_back(bench: Bench) -> None:
    await bench.submit(2, MAX_SAMPLES)
    await bench.end()
    feed = Feed(bench.metered, bench.blobs)
    lease = await feed.lease("b", "c", most=5000, ttl_s=60)
    assert len(lease.records) == 5000
    await bench.plain.redis.delete(bench.keys.log)  # all of it is stale
    await feed.lease("b", "c", most=5000, ttl_s=60, lease_id=lease.lease_id)
    assert await feed.ack("b", "c", lease_id=lease.lease_id) < 5000


async def an_ended_batch_goes(bench: Bench) -> None:
    await bench.submit(20, MAX_SAMPLES)
    await bench.plain.redis.hset(bench.keys.traj, mapping={f"0:{sample}": b"x" * 200 for sample in range(50_000)})
    await bench.end()
    feed = Feed(bench.plain, bench.blobs)
    for consumer in range(300):
        await feed.lease("b", f"c{consumer}", most=1, ttl_s=60)
    kept = EndedBatches(bench.metered)
    assert await kept.drop("b", DropReason.SIZE)
    assert await kept.remove("b", 2**60)
    names = [key async for key in bench.plain.redis.scan_iter(f"{bench.plain.keys.prefix}:b:*", count=1000)]
    assert [name for name in names if not name.endswith(b":done")] == []  # that ends by itself


async def a_draining_worker_hands_back_what_it_has(bench: Bench) -> None:
    await bench.submit(1, SLICE)
    taken = await bench.rollouts.take("b", SLICE)
    assert await bench.measured.bounce("b", [(item.member, item.attempt) for item in taken]) == SLICE


async def a_model_call_has_very_many_messages(bench: Bench) -> None:
    captures = Captures(bench.metered)
    messages: list[JsonObject] = [{"role": "user", "content": str(number)} for number in range(50_000)]
    reply: JsonObject = {"role": "assistant", "content": "yes"}
    answer = CallAnswer(
        completion={"choices": [{"message": reply}]}, overflow=None, created_at=0.0, tokens=None,
        facts=CallFacts(
            endpoint="http://model", finish="stop", usage=Usage(), version_before=None, version_after=None,
            duration_s=0.1, attempts=1,
        ),
    )  # fmt: skip
    asked = [messages, [*messages, reply, {"role": "user", "content": "why?"}]]
    for turn, conversation in enumerate(asked):
        body: JsonObject = {"model": "m", "messages": conversation}
        call = await captures.begin(
            CallRequest(
                rollout_id="b:0:0", attempt=1, dialect="chat", body=body, chat=body, policy="p", model="m",
                request_items=None,
            )
        )  # fmt: skip
        assert isinstance(call, OpenCall)
        assert (call.known, call.before) == ((0, 0), (50_001, 50_001))[turn]
        await captures.record(call, answer)


async def a_worker_does_not_hold_what_it_was_given(bench: Bench) -> None:
    await bench.submit(1, MAX_SAMPLES)
    claims = await bench.claim(MOST_LIVE - 100)
    await bench.commit(await bench.claim(100))
    await bench.ask(claims[:500])
    assert await recount(bench.metered, "b")
    assignments = Assignments(bench.metered)
    assigned = await assignments.of_batches(["b"])
    assert len(assigned) == len(claims) - 500
    for call in assignments.take_back_calls(assigned, max_attempts=3, message="not held"):
        await bench.metered.run(call.script, call.keys, call.args)
    assert await assignments.of_batches(["b"]) == []


async def results_and_live_values_cannot_be_read(bench: Bench) -> None:
    await bench.submit(1, MAX_SAMPLES)
    claims = await bench.claim(2500)
    await bench.commit(claims[:1000])
    log = await bench.plain.redis.xrange(bench.keys.log)
    record = {"environment": ENVIRONMENT, "attempt": 1, "reward": 1.0}
    lost = [Recalled(fields[b"m"].decode(), cursor.decode(), record, "gone") for cursor, fields in log]
    assert await recall(bench.metered, "b", lost) == 1000
    spoiled = {claim.member: b"nonsense" for claim in claims[1000:]}
    await bench.plain.redis.hset(bench.keys.live, mapping=spoiled)
    assert len(await Audits(bench.metered).put_aside("b")) == len(spoiled)


Scenario = Callable[[Bench], Awaitable[None]]
SCENARIOS: dict[Scenario, set[str]] = {
    everything_is_in_lines_and_is_cancelled: {"cancel"},
    a_group_that_lies_parked_in_single_samples_is_stopped: {"cancel", "stop_step", "take", "probe"},
    groups_reach_their_early_stop_at_once: {"commit", "stop_step"},
    groups_were_cancelled_before_they_came: {"take"},
    retries_are_due_of_what_is_over: {"take", "probe"},
    a_worker_and_a_judge_worker_die_with_all_that_is_live: {"recover", "judge_recover"},
    all_of_a_long_line_is_judged: {
        "take", "claim", "ask_judge", "judge_park", "judge_release", "judge_take", "judge_claim", "judge_again",
    },
    what_is_lost_is_searched_for: {"audit", "adopt"},
    a_large_request_is_published: {"publish", "publish_check", "publish_step", "seal"},
    all_that_failed_runs_again: {"requeue"},
    all_results_are_judged_again: {"rejudge"},
    large_groups_are_leased_and_acknowledged: {"groups_ended", "lease", "ack"},
    many_results_are_leased_and_come_back: {"lease", "ack"},
    an_ended_batch_goes: {"drop", "remove", "fold"},
    a_draining_worker_hands_back_what_it_has: {"bounce"},
    results_and_live_values_cannot_be_read: {"requeue_unreadable", "put_aside"},
    a_worker_does_not_hold_what_it_was_given: {"assigned", "count_done", "recount", "unheld"},
    a_model_call_has_very_many_messages: {"capture_begin", "capture_record"},
}  # fmt: skip
"""Scenarios and the scripts that each one measures."""

OF_ONE_THING = {
    "alarm",
    "alone",
    "end_unreadable",
    "insist",
    "lead",
    "policy_report",
    "refund",
    "retry",
    "session_open",
    "session_touch",
}
"""Scripts without a loop: they handle one rollout, session or key."""

OF_A_FEW = {"breaker", "capture_mark"}
"""Scripts that loop over the failures that open a breaker, which a setting bounds, and over four keys."""

LIBRARIES = {"lib", "dispatch", "feed"}


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
async def test_no_script_call_does_more_than_a_little(bench: Bench, scenario: Scenario) -> None:
    before_ms = await bench.metered.thousand_writes_ms()
    await scenario(bench)
    slowness = max(before_ms, await bench.metered.thousand_writes_ms(), REFERENCE_MS) / REFERENCE_MS
    costs = bench.metered.costs
    assert SCENARIOS[scenario] <= set(costs)
    said = {name: (cost.commands, round(cost.cpu_ms, 1), cost.arguments) for name, cost in costs.items()}
    sys.stdout.write(f"{slowness:.1f} {said}\n")
    assert max(cost.commands for cost in costs.values()) <= MOST_COMMANDS, said
    assert max(cost.cpu_ms for cost in costs.values()) <= MOST_CPU_MS * slowness, said
    assert max(cost.arguments for cost in costs.values()) <= MOST_ARGUMENTS, said


def scripts() -> dict[str, str]:
    folder = files("gym.state") / "scripts"
    return {path.name.removesuffix(".lua"): path.read_text() for path in folder.iterdir() if path.name[-4:] == ".lua"}


def test_every_script_is_measured_or_handles_one_thing() -> None:
    assert set().union(*SCENARIOS.values(), OF_ONE_THING, OF_A_FEW, LIBRARIES) == set(scripts())
    loops = {name for name, text in scripts().items() if re.search(r"^\s*(for|while|repeat)\b", text, re.MULTILINE)}
    assert not loops & OF_ONE_THING
    loaded = {script.name for script in vars(stores).values() if isinstance(script, Script)}
    assert loaded <= set(scripts())


def test_every_script_stands_in_the_table_of_bounds() -> None:
    page = Path(__file__).parents[3] / "docs" / "redis-scripts.md"
    named = set(re.findall(r"`(\w+)\.lua`", page.read_text()))
    assert named == set(scripts()) - LIBRARIES
