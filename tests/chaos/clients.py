"""Trainers of a farm while it is being killed: one submits, follows by cursor and cancels, one leases.

They follow the rules for clients, repeat unanswered requests, and write down acknowledged ones.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from gym.client import connect
from gym.client.records import Result
from gym.errors import FarmError, NotFound, Unavailable
from gym.ids import new_id
from tests.chaos.observations import Cancelled, Ended, Taken
from tests.chaos.workload import SAMPLES, BatchPlan

Answer = TypeVar("Answer")

PATIENCE_S = 180.0
PAGES_OF_A_LIFE = 25
MAX_ATTEMPTS = 50
CONSUMER = "leaser"
LEASE_TTL_S = 5.0


async def patiently(call: Callable[[], Awaitable[Answer]]) -> Answer:
    """Ask until the farm answers, for minutes."""
    give_up_at = time.monotonic() + PATIENCE_S
    while True:
        try:
            return await call()
        except Unavailable:
            if time.monotonic() >= give_up_at:
                raise
            await asyncio.sleep(0.2)


class Trainer:
    """Submits the batches of a plan and follows each with a cursor that it keeps over its own restarts too."""

    def __init__(self, url: str) -> None:
        self.acknowledged: dict[str, int] = {}
        self.cancels: list[Cancelled] = []
        self.seen: dict[str, list[Ended]] = {}
        self.breaches: list[str] = []
        self._url = url

    async def submit(self, plan: BatchPlan, *, pause_s: float = 0.0) -> None:
        """Create the batch and bring all its rows; each portion of an appended one after a pause."""
        options: dict[str, Any] = {
            "batch_id": plan.batch_id,
            "num_samples": SAMPLES,
            "limits": {"max_attempts": MAX_ATTEMPTS, "rollout_timeout_s": 300},
        }
        async with connect(self._url, retries=2) as farm:
            if plan.how == "whole":
                [rows] = plan.portions
                created = await patiently(lambda: farm.submit(rows, **options))
                self._acknowledge(plan, len(rows) * SAMPLES, (created.created or {}).get("submitted"))
                return
            await patiently(lambda: farm.submit([], sealed=False, **options))
            batch = farm.batch(plan.batch_id)
            sent = 0
            for portion in plan.portions:
                added = await patiently(lambda portion=portion: batch.add_rows(portion))  # type: ignore[misc]
                sent += len(portion) * SAMPLES
                self._acknowledge(plan, sent, added.submitted)
                await asyncio.sleep(pause_s)
            await patiently(batch.seal)

    async def follow(self, plan: BatchPlan) -> None:
        """Read the feed to its end."""
        seen = self.seen.setdefault(plan.batch_id, [])
        cursor: str | None = None
        give_up_at = time.monotonic() + PATIENCE_S
        while True:
            async with connect(self._url, retries=2, timeout_s=20) as farm:
                results = farm.batch(plan.batch_id).results(after=cursor)
                try:
                    for _ in range(PAGES_OF_A_LIFE):
                        seen += [ended(result) for result in await results.page(wait_s=2.0)]
                        cursor = results.after
                        give_up_at = time.monotonic() + PATIENCE_S
                        if results.done:
                            return
                except FarmError as error:
                    # one that is not there yet is like one that is away
                    if time.monotonic() >= give_up_at:
                        self.breaches.append(f"the feed of {plan.batch_id} could not be read: {error}")
                        return
                    await asyncio.sleep(0.2)

    async def cancel(self, plan: BatchPlan) -> None:
        """Cancel the whole batch."""
        async with connect(self._url, retries=2) as farm:
            answer = await patiently(lambda: farm.cancel(plan.batch_id, kind="batch"))
            acknowledged_at = time.time()
            while answer["left"] and not (await patiently(farm.batch(plan.batch_id).status)).ended:  # noqa: ASYNC110  polled
                await asyncio.sleep(0.1)
        self.cancels.append(
            Cancelled(acknowledged_at=acknowledged_at, batch_id=plan.batch_id, done_at=time.time())
        )  # fmt: skip

    async def cancel_groups(self, plan: BatchPlan, most: int) -> None:
        """Cancel groups of which one rollout has ended and the others are likely on their way."""
        groups = Counter(one.rollout_id.rpartition(":")[0] for one in self.seen.get(plan.batch_id, ()))
        begun = [group_id for group_id, ended in groups.items() if ended < SAMPLES][-most:]
        async with connect(self._url, retries=2) as farm:
            for group_id in begun:
                await patiently(lambda group_id=group_id: farm.cancel(group_id, kind="group"))  # type: ignore[misc]
                self.cancels.append(Cancelled(acknowledged_at=time.time(), batch_id=plan.batch_id, group_id=group_id))

    async def read_from_scratch(self, plan: BatchPlan) -> list[Ended]:
        """The whole feed, as a reader that comes later sees it."""
        found: list[Ended] = []
        async with connect(self._url) as farm:
            results = farm.batch(plan.batch_id).results()
            while page := await patiently(lambda: results.page(wait_s=0.0)):
                found += [ended(result) for result in page]
        return found

    def _acknowledge(self, plan: BatchPlan, sent: int, acknowledged: object) -> None:
        self.acknowledged[plan.batch_id] = sent
        if acknowledged != sent:
            self.breaches.append(f"{plan.batch_id}: {sent} rollouts were sent and {acknowledged} acknowledged")


@dataclass(slots=True)
class Leaser:
    """A trainer that leases results and acknowledges them, and in one of five times dies before it does.

    `taken` are the leases in order, each with whether it was acknowledged.
    """

    url: str
    chance: random.Random
    taken: list[Taken] = field(default_factory=list)

    async def consume(self, plan: BatchPlan) -> None:
        """Until the farm says that this consumer has acknowledged everything."""
        async with connect(self.url, retries=2, timeout_s=20) as farm:
            batch = farm.batch(plan.batch_id)
            while True:
                lease_id = new_id("lease")
                asked: dict[str, Any] = {"consumer": CONSUMER, "most": 40, "ttl_s": LEASE_TTL_S, "lease_id": lease_id}
                try:
                    lease = await patiently(lambda asked=asked: batch.lease(**asked, wait_s=2.0))  # type: ignore[misc]
                except NotFound:  # it has not been submitted yet
                    await asyncio.sleep(0.2)
                    continue
                if lease.done:
                    return
                ids = tuple(item.rollout_id for item in lease.items)
                dies = self.chance.random() < 0.2
                if ids and not dies:
                    acknowledge = {"consumer": CONSUMER, "lease_id": lease_id}
                    await patiently(lambda asked=acknowledge: batch.ack(**asked))  # type: ignore[misc]
                self.taken.append(Taken(ids, acknowledged=not dies))


def ended(result: Result) -> Ended:
    """A result as the checks want it."""
    return Ended(
        (result.batch_id, result.task_id, result.sample_index),
        result.rollout_id,
        result.attempt,
        str(result.outcome),
        result.reward,
        result.model_calls,
        f"{result.error.kind}: {result.error.message}" if result.error is not None else "",
    )
