"""Counters of outcomes over the whole farm, which are never reset.

Invariant: an outcome is counted by the script that records it. A batch's ledger and its `again|OUTCOME` (taken back by
a requeue or a rejudging) together give the number of outcomes. A batch's counters are folded into the farm's after it
has ended and before it is removed; those of active batches are added on reading. Both only grow.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from gym.rollout import Outcome
from gym.state.redis.store import FOLD, Store

TAKEN_BACK = tuple(f"again|{outcome}" for outcome in Outcome)
FIELDS = ("created_at", *Outcome, *TAKEN_BACK)
"""Fields of a batch's `meta` that `counters_of` takes."""


def counters_of(meta: Mapping[str, int]) -> dict[str, int]:
    """Return a batch's counters by name: ends by outcome, and those taken back as `again|OUTCOME`."""
    ends = {outcome.value: meta[outcome] + meta[f"again|{outcome}"] for outcome in Outcome}
    return ends | {name: meta[name] for name in TAKEN_BACK}


async def fold(store: Store, batch_id: str) -> None:
    """Add a batch to the farm's counters, as far as it is not in them; idempotent."""
    values = await store.redis.hmget(store.keys.batch(batch_id).meta, FIELDS)
    meta = {name: int(value or 0) for name, value in zip(FIELDS, values, strict=True)}
    if not meta["created_at"]:
        return
    args: list[str | int] = [batch_id, meta["created_at"]]
    for name, value in counters_of(meta).items():
        args += [name, value]
    await store.run(FOLD, [store.keys.ends, store.keys.ends_folded], args)


async def forget(store: Store, batch_id: str) -> None:
    """Forget what was folded of a removed batch; its counts stay."""
    await store.redis.hdel(store.keys.ends_folded, batch_id)


async def read_ends(store: Store, active: Mapping[str, Mapping[str, int]]) -> Counter[str]:
    """Return the farm's counters, given the `FIELDS` of the active batches, which must have been read before."""
    pipeline = store.redis.pipeline(transaction=True)
    pipeline.hgetall(store.keys.ends)
    if active:
        pipeline.hmget(store.keys.ends_folded, list(active))
    stored, *folded = await pipeline.execute()
    found = Counter({name.decode(): int(value) for name, value in stored.items()})
    for meta, text in zip(active.values(), folded[0] if folded else (), strict=True):
        known = _folded(text, meta["created_at"])
        found.update({name: max(0, value - known.get(name, 0)) for name, value in counters_of(meta).items()})
    return found


def _folded(text: bytes | None, created_at: int) -> dict[str, int]:
    """Return the folded counters of a batch, empty if they are those of an earlier batch of the same name."""
    since, _, pairs = (text or b"0|").decode().partition("|")
    if int(since) != created_at:
        return {}
    return {name: int(value) for name, _, value in (pair.partition("=") for pair in pairs.split())}
