"""Retention of ended batches: by age, by acknowledgement, by size; files go with the pointers to them."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest
from redis.exceptions import OutOfMemoryError

from gym.config import Settings
from gym.ids import parse_member
from gym.results.blobs import BlobStore
from gym.results.record import pack_trajectory
from gym.state.ledger.batches import Batches, activate
from gym.state.ledger.feed import Feed
from gym.state.ledger.results import ResultLog, View
from gym.state.ledger.rollouts import Commit, Rollouts
from gym.state.ledger.submission import NewBatch, StagedRow, Staging
from gym.state.redis.store import Store
from gym.task import RowHeader
from gym.trajectory import Segment
from workers.dispatch.dispatcher import Dispatcher
from workers.dispatch.publisher import Publisher
from workers.dispatch.upkeep.retention import Retention

pytestmark = pytest.mark.anyio
LONG_AGO_MS = 3_600_000


@dataclass
class Farm:
    """A farm without its processes; batches are run by hand, with a file for each trajectory."""

    store: Store
    folder: Path
    redis_url: str

    @property
    def blobs(self) -> BlobStore:
        return BlobStore(self.folder / "blobs", inline_bytes=0)

    def settings(self, **results: Any) -> Settings:
        return Settings(data_dir=self.folder, redis={"url": self.redis_url}, results=results)

    def retention(self, **results: Any) -> Retention:
        return Retention(self.settings(**results), self.store)

    async def submit(self, batch_id: str, rows: int = 2, *, seal: bool = True) -> None:
        staging = Staging(self.store, batch_id)
        header = RowHeader(task_id=None, environment="weather", num_samples=1)
        await staging.add([StagedRow(header=header, raw=b'{"responses_create_params": {}}', digest="")] * rows)
        limits = {"limits": {"max_attempts": 3, "rollout_timeout_s": 600, "deadline_s": None}}
        spec = NewBatch(spec=limits, digest="d", run="r", priority=5, weight=1.0, policy="p")
        await staging.publish(create=spec, seal=seal)

    async def run(self, batch_id: str, *, outcome: str = "succeeded") -> None:
        """End all waiting rollouts."""
        rollouts = Rollouts(self.store)
        taken = await rollouts.take(batch_id, 100)
        for claim in await rollouts.claim(batch_id, "w", [(one.member, one.attempt) for one in taken]):
            segment = Segment(array("i", [5] * 100), bytearray([1] * 100), array("f", [-0.5] * 100), [])
            packed = pack_trajectory({"id": "resp"}, [], [segment])
            rollout = f"{batch_id}:{claim.member}"
            record = {"rollout_id": rollout, "outcome": outcome, "attempt": claim.attempt, "model_calls": 1}
            commit = Commit(
                outcome=outcome,
                record=orjson.dumps(record),
                trajectory=await self.blobs.write(parse_member(batch_id, claim.member), claim.attempt, packed),
                usable=True,
                early_stop=0,
                sums={},
            )
            [answer] = await self.store.run_many([rollouts.commit_call(claim, commit)])
            assert answer[0] == 1

    async def end(self, batch_id: str, retention: Retention, *, age_ms: int = 0, rows: int = 2) -> None:
        """Create a batch that ended so long ago."""
        await self.submit(batch_id, rows)
        await self.run(batch_id)
        meta = self.store.keys.batch(batch_id).meta
        created_at, ended_at = await self.store.redis.hmget(meta, ["created_at", "ended_at"])
        await self.store.redis.hset(meta, "ended_at", int(ended_at) - age_ms)
        await retention.retire(batch_id, int(created_at))

    async def training(self, batch_id: str) -> list[dict[str, Any]]:
        page = await ResultLog(self.store, self.blobs).page(batch_id, after=None, limit=10, view=View.TRAINING)
        return [orjson.loads(record) for record in page.records]

    def files(self) -> list[str]:
        """Return the batches that have files, once for each."""
        paths = (self.folder / "blobs").rglob("*")
        return sorted(path.parts[-3] for path in paths if path.is_file())

    async def keys_of(self, batch_id: str) -> list[bytes]:
        """Return the batch's keys without those that make the submission idempotent, which expire."""
        found: list[bytes] = await self.store.redis.keys(f"farm:b:{{{batch_id}}}:*")
        return [name for name in found if b":stage:" not in name]


@pytest.fixture
async def farm(redis_url: str, tmp_path: Path) -> AsyncIterator[Farm]:
    store = Store.connect(redis_url)
    yield Farm(store, tmp_path, redis_url)
    await store.close()


@asynccontextmanager
async def full(store: Store) -> AsyncIterator[None]:
    """A Redis whose memory is used up."""
    await store.redis.config_set("maxmemory", 1)
    try:
        yield
    finally:
        await store.redis.config_set("maxmemory", 0)


async def consume(farm: Farm, batch_id: str, consumer: str, *, acknowledge: bool = True) -> None:
    feed = Feed(farm.store, farm.blobs)
    lease = await feed.lease(batch_id, consumer, most=100, ttl_s=600)
    if acknowledge:
        await feed.ack(batch_id, consumer, lease_id=lease.lease_id)


async def test_a_batch_that_is_too_old_goes_with_its_files_and_its_consumers(farm: Farm) -> None:
    retention = farm.retention(keep_s=60)
    await farm.end("old", retention, age_ms=LONG_AGO_MS)
    await farm.end("young", retention)
    await consume(farm, "old", "trainer")
    await retention.run()
    await retention.run_when_due()
    assert await farm.keys_of("old") == []
    assert farm.files() == ["b-young", "b-young"]
    assert [len(item["segments"]) for item in await farm.training("young")] == [1, 1]


async def test_a_batch_that_runs_again_is_not_too_old(farm: Farm) -> None:
    retention = farm.retention(keep_s=60)
    await farm.submit("b")
    await farm.run("b", outcome="failed")
    await farm.store.redis.hset(farm.store.keys.batch("b").meta, "ended_at", 1)
    await retention.retire("b", 0)
    assert await Batches(farm.store).requeue("b", [("0:0", 1, "weather", b"{}\n")]) == 1
    await retention.run()
    await farm.run("b")
    [kept, again] = await farm.training("b")
    assert (kept["attempt"], again["attempt"]) == (1, 2)
    assert kept["segments"]
    assert again["segments"]
    assert await farm.store.redis.ttl(farm.store.keys.batch("b").log) == -1


async def test_trajectories_go_when_every_consumer_has_acknowledged_all_and_records_say_so(farm: Farm) -> None:
    retention = farm.retention(keep_acknowledged_s=0.001)
    await farm.end("b", retention)
    await consume(farm, "b", "one")
    await consume(farm, "b", "two", acknowledge=False)
    await asyncio.sleep(0.005)
    await retention.run()
    assert all(item["segments"] for item in await farm.training("b"))
    feed = Feed(farm.store, farm.blobs)
    assert await feed.ack("b", "two", rollout_ids=["b:0:0", "b:1:0"]) == 2
    await asyncio.sleep(0.005)
    await retention.run()
    shown = await farm.training("b")
    assert [item["segments"] for item in shown] == [None, None]
    assert {item["trajectory_dropped"]["reason"] for item in shown} == {"acknowledged"}
    assert [item["outcome"] for item in shown] == ["succeeded", "succeeded"]
    light = await ResultLog(farm.store, farm.blobs).page("b", after=None, limit=10, view=View.LIGHT)
    assert [orjson.loads(record)["rollout_id"] for record in light.records] == ["b:0:0", "b:1:0"]


async def test_results_after_a_requeue_have_to_be_acknowledged_too(farm: Farm) -> None:
    retention = farm.retention(keep_acknowledged_s=0.001)
    await farm.submit("b")
    await farm.run("b", outcome="failed")
    await consume(farm, "b", "trainer")
    await asyncio.sleep(0.005)
    await Batches(farm.store).requeue("b", [("0:0", 1, "weather", b"{}\n")])
    await farm.run("b")
    await retention.retire("b", 0)
    await asyncio.sleep(0.005)
    await retention.run()
    assert all(item["segments"] for item in await farm.training("b"))


async def test_above_the_size_the_oldest_ended_batches_give_up_theirs_first(farm: Farm) -> None:
    keeping = farm.retention()
    for number, age in enumerate((3000, 2000, 1000)):
        await farm.end(f"b{number}", keeping, age_ms=age)
    await farm.submit("live", seal=False)
    await activate(farm.store, "live")
    await farm.run("live")
    size = int(await farm.store.redis.hget(farm.store.keys.stored, "b0"))
    assert size > 1000
    retention = farm.retention(max_bytes=2 * size)  # room for one of the three, beside the live one
    await retention.run()
    assert {item["trajectory_dropped"]["reason"] for n in (0, 1) for item in await farm.training(f"b{n}")} == {"size"}
    assert all(item["segments"] for item in [*await farm.training("b2"), *await farm.training("live")])
    await retention.run()
    assert all(item["segments"] for item in await farm.training("b2"))


async def test_a_crash_between_keys_and_files_is_made_good(farm: Farm) -> None:
    retention = farm.retention(keep_s=60)
    await farm.end("b", retention, age_ms=LONG_AGO_MS)
    await farm.store.redis.delete(*await farm.keys_of("b"))  # they ended by themselves, or the dispatcher died
    await retention.run()
    await retention.run_when_due()
    assert farm.files() == []
    assert await farm.store.redis.zcard(farm.store.keys.kept) == 0


async def test_a_full_redis_still_hands_results_out_and_lets_old_ones_go(farm: Farm) -> None:
    retention = farm.retention(max_bytes=1)
    await farm.submit("b")
    await farm.run("b")
    async with full(farm.store):
        with pytest.raises(OutOfMemoryError):
            await farm.store.redis.set("more", "x")
        await consume(farm, "b", "trainer")
        await retention.retire("b", 0)
        await retention.run()
    assert {item["trajectory_dropped"]["reason"] for item in await farm.training("b")} == {"size"}


async def test_files_that_cannot_be_deleted_stop_nothing(farm: Farm) -> None:
    retention = farm.retention(keep_s=60)
    await farm.end("b", retention, age_ms=LONG_AGO_MS)
    (farm.folder / "blobs" / ".trash").write_text("not a folder")
    await retention.run_when_due()
    assert farm.files().count("b-b") == 2
    (farm.folder / "blobs" / ".trash").unlink()
    await retention.run()
    assert "b-b" not in farm.files()


async def test_the_dispatcher_looks_after_it(farm: Farm) -> None:
    settings = farm.settings(keep_s=0.001)
    publisher = Publisher(settings)
    dispatcher = Dispatcher(settings, farm.store, publisher)
    await farm.submit("b")
    await activate(farm.store, "b")
    await farm.run("b")
    running = asyncio.create_task(dispatcher.run())
    try:
        async with asyncio.timeout(60):
            while await farm.keys_of("b") or farm.files():
                await farm.store.redis.blpop(["nothing"], timeout=0.1)
    finally:
        dispatcher.stop()
        await running
        publisher.close()
