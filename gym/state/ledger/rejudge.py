"""Rejudging of stored trajectories, with another judge if one is named."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import orjson

from gym.ids import parse_rollout_id
from gym.jsontypes import JsonObject
from gym.reward import PASS_REWARD
from gym.state.ledger.batches import activate, being_cancelled, keep_for
from gym.state.ledger.judging import Judging, RejudgedResult
from gym.state.ledger.results import ResultLog, View
from gym.state.redis.store import Store

PAGE = 1000


@dataclass(frozen=True, slots=True)
class RejudgeCounts:
    """Number of results that are `judged` again, and of those `skipped` since they had asked no judge."""

    judged: int
    skipped: int


async def rejudge(
    store: Store, results: ResultLog, batch_id: str, *, wanted: Collection[str] | None = None, judge: str | None = None
) -> RejudgeCounts:
    """Judge a batch's results again, or those of the rollouts in `wanted`.

    Raises NotFound, or Conflict while the batch is being cancelled.

    No model is called, and each result keeps its reward until there is a new verdict. Results that arrive meanwhile are
    left alone.
    """
    judging, keys = Judging(store), store.keys.batch(batch_id)
    latest = await store.redis.xrevrange(keys.log, count=1)
    last = _place(latest[0][0].decode()) if latest else (0, 0)
    judged = skipped = 0
    after: str | None = None
    while True:
        page = await results.page(batch_id, after=after, limit=PAGE, view=View.LIGHT)
        items: list[RejudgedResult] = []
        meant = 0
        for text, cursor in zip(page.records, page.cursors, strict=True):
            record = orjson.loads(text)
            if _place(cursor) > last or (wanted is not None and record["rollout_id"] not in wanted):
                continue
            meant += 1
            item = _item(record, text, cursor, judge)
            if item is not None:
                items.append(item)
        done = await judging.rejudge(batch_id, items) if items else 0
        if done < 0:
            raise being_cancelled(batch_id)
        judged += done
        skipped += meant - done
        if not page.more or _place(page.next_after) >= last:
            break
        after = page.next_after
    if judged:
        await keep_for(store, batch_id, None)
        await activate(store, batch_id)
    return RejudgeCounts(judged, skipped)


def score_sums(reward: float | None) -> dict[str, float]:
    """Return what a reward adds to its environment's sums."""
    if reward is None:
        return {}
    return {"scored": 1, "reward": reward, "passed": float(reward >= PASS_REWARD)}


def _item(record: JsonObject, text: bytes, cursor: str, judge: str | None) -> RejudgedResult | None:
    """Return the result to judge, `None` if no judge was asked or the rollout ended without a result."""
    asked = record.get("judge")
    rollout = parse_rollout_id(record.get("rollout_id", ""))
    if asked is None or rollout is None or record["outcome"] not in ("succeeded", "failed"):
        return None
    return RejudgedResult(
        member=rollout.member,
        cursor=cursor,
        environment=record["environment"],
        judge=judge or asked,
        replaced=judge is not None,
        outcome=record["outcome"],
        sums=score_sums(record["reward"]),
        record=text,
    )


def _place(cursor: str) -> tuple[int, int]:
    ms, _, number = cursor.partition("-")
    return int(ms), int(number)
