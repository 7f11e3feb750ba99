"""Feed of a batch for consumers that acknowledge: an unacknowledged result is leased again.

Invariant: every result is delivered to every consumer at least once, and not again after that consumer has acknowledged
it. A consumer is a name; its processes share the deliveries, and consumers do not affect each other. A result that was
taken back and produced again is a new result, and its group a new group. Time is the server's. The cost of a lease
grows with the results in it, not with the log, since each consumer has a cursor.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from gym.errors import Conflict, Invalid
from gym.ids import ID_PATTERN, is_id, new_id, parse_rollout_id
from gym.results.blobs import BlobStore
from gym.rollout import Outcome
from gym.state.ledger.batches import batch_not_found
from gym.state.ledger.log_position import START
from gym.state.ledger.result_records import LogEntry
from gym.state.ledger.results import ResultLog, View
from gym.state.redis.store import ACK, GROUPS_ENDED, LEASE, Argument, Store

LEASE_BYTES = 32 * 2**20
LOOK_AT = 250  # entries of the log that one script call looks at
LIGHT_PORTION = 250
HEAVY_PORTION = 32
ACK_PORTION = 200


class LeaseUnit(StrEnum):
    """Unit of leasing and acknowledgement."""

    ROLLOUT = "rollout"
    GROUP = "group"


@dataclass(frozen=True, slots=True)
class ResultLease:
    """Results leased until `expires_at` (ms of the server's clock), the results of a group side by side.

    `records` are JSON texts or packed (msgpack). `done` means that the batch has ended and this consumer has
    acknowledged all of it; an empty lease that is not done may be requested again later. `position` is the consumer's
    cursor in the log.
    """

    lease_id: str
    expires_at: int
    records: list[bytes]
    done: bool
    position: str


class Feed:
    """Leases and acknowledgements; state is in Redis alone."""

    def __init__(self, store: Store, blobs: BlobStore) -> None:
        self._store = store
        self._results = ResultLog(store, blobs)

    async def lease(
        self,
        batch_id: str,
        consumer: str,
        *,
        most: int,
        ttl_s: float,
        unit: LeaseUnit = LeaseUnit.ROLLOUT,
        lease_id: str | None = None,
        view: View = View.LIGHT,
        packed: bool = False,
        position: str | None = None,
    ) -> ResultLease:
        """Lease up to `most` units that this consumer has neither acknowledged nor leased; fewer if they are large.

        With a caller's `lease_id` the call is idempotent: while that lease lasts it returns the units under it, for
        another `ttl_s`. Raises NotFound, Invalid for an invalid name, or Conflict if the consumer leases by another
        unit. With the `position` of an earlier lease, it raises LogWentBack if the log has gone back since.
        """
        _check_name("consumer", consumer)
        _check_name("lease_id", lease_id)
        if position is not None:
            await self._results.check(batch_id, position)
        lease = lease_id or new_id("lease")
        keys = self._store.keys.batch(batch_id)
        scripted = [*keys.scripted(), keys.feeds, *keys.feed(consumer)]
        records: list[bytes] = []
        units = size = first_end = 0
        while True:
            portion = LIGHT_PORTION if view is View.LIGHT else HEAVY_PORTION
            args: list[Argument] = [consumer, unit, lease, int(ttl_s * 1000), most - units, portion, LOOK_AT, units]
            verdict, *answer = await self._store.run(LEASE, scripted, args)
            if verdict == b"missing":
                raise batch_not_found(batch_id)
            if verdict == b"unit":
                raise _other_unit(consumer, answer[0].decode(), unit)
            run, expires_at, more, done, cursor, *found = answer
            entries = await self._entries(batch_id, found)
            for first in range(0, len(entries), portion):
                part = entries[first : first + portion]
                records += await self._results.records(batch_id, run.decode(), part, view, packed=packed)
            size += sum(map(len, records[-len(entries) :])) if entries else 0
            units += len(entries) if unit is LeaseUnit.ROLLOUT else len({_row(fields) for _, fields in entries})
            first_end = first_end or int(expires_at)
            if not more or units >= most or size >= LEASE_BYTES:
                return ResultLease(lease, first_end, records, bool(done), cursor.decode())

    async def ack(
        self, batch_id: str, consumer: str, *, lease_id: str | None = None, rollout_ids: Sequence[str] | None = None
    ) -> int:
        """Acknowledge a lease, or rollouts (with a `lease_id`, those that belong to it); return the number.

        Without a lease, a rollout means its present result; results that were not leased are not acknowledged. An
        expired lease may still be acknowledged for an hour. Of a group, name all rollouts or none. Raises NotFound, or
        Invalid.
        """
        _check_name("consumer", consumer)
        _check_name("lease_id", lease_id)
        if lease_id is None and rollout_ids is None:
            raise Invalid("invalid_ack", "give `lease_id` or `rollout_ids`", {"field": "lease_id"})
        if rollout_ids is not None and not rollout_ids:
            return await self._nothing(batch_id)
        members = [] if rollout_ids is None else [_of_batch(batch_id, name, at) for at, name in enumerate(rollout_ids)]
        portions = _portions(members)
        if len(portions) > 1:  # all or none
            for portion in portions:
                await self._ack(batch_id, consumer, lease_id, portion, only_look=True)
        return sum([await self._ack(batch_id, consumer, lease_id, portion) for portion in portions])

    async def _ack(
        self, batch_id: str, consumer: str, lease_id: str | None, members: Sequence[str], *, only_look: bool = False
    ) -> int:
        keys = self._store.keys.batch(batch_id)
        names = [*keys.scripted(), keys.feeds, *keys.feed(consumer)]
        verdict, *answer = await self._store.run(ACK, names, [consumer, lease_id or "", int(only_look), *members])
        if verdict == b"missing":
            raise batch_not_found(batch_id)
        if verdict == b"partial":
            row, named, samples = answer
            raise Invalid(
                "incomplete_group",
                f"consumer {consumer} leases groups, and {named} of the {samples} rollouts of group "
                f"{batch_id}:{row.decode()} were named; name all of them, or give the lease_id",
                {"field": "rollout_ids", "group_id": f"{batch_id}:{row.decode()}"},
            )
        return int(answer[0])

    async def _entries(self, batch_id: str, found: Sequence[Any]) -> list[LogEntry]:
        """Return the entries of a lease; the fields of large groups are read in portions by their ids.

        A result that was taken back since is left out.
        """
        log = self._store.keys.batch(batch_id).log
        bare = [entry_id for item in found if len(item) == 1 for entry_id in item[0].split()]
        read: dict[bytes, LogEntry] = {}
        for first in range(0, len(bare), HEAVY_PORTION * 4):
            pipeline = self._store.redis.pipeline(transaction=False)
            for entry_id in bare[first : first + HEAVY_PORTION * 4]:
                pipeline.xrange(log, min=entry_id, max=entry_id)
            read |= {entry[0]: entry for entries in await pipeline.execute() for entry in entries}
        entries: list[LogEntry] = []
        for ids, *fields in found:
            if fields:
                [flat] = fields
                entries.append((ids, dict(zip(flat[::2], flat[1::2], strict=True))))
            else:
                entries += [read[entry_id] for entry_id in ids.split() if entry_id in read]
        return entries

    async def wait(self, batch_id: str, consumer: str, *, timeout_s: float) -> None:
        """Return when there may be something to lease, after `timeout_s` or a second at the latest."""
        [feed, *_] = self._store.keys.batch(batch_id).feed(consumer)
        cursor = await self._store.redis.hget(feed, "cursor")
        await self._results.wait(batch_id, after=cursor.decode() if cursor else START, timeout_s=timeout_s)

    async def groups_ended(self, batch_id: str, cursors: Sequence[str]) -> dict[str, dict[str, int]]:
        """Return the cursors at which a group was complete, with its rollouts by outcome."""
        if not cursors:
            return {}
        ended: list[list[Any]] = []
        at = 0
        while at < len(cursors):
            keys = self._store.keys.batch(batch_id).scripted()
            looked_at, *found = await self._store.run(GROUPS_ENDED, keys, cursors[at : at + LOOK_AT])
            ended += found
            at += looked_at
        return {
            cursor.decode(): {outcome.value: number for outcome, number in zip(Outcome, counts, strict=True)}
            for cursor, *counts in ended
        }

    async def _nothing(self, batch_id: str) -> int:
        if not await self._store.redis.exists(self._store.keys.batch(batch_id).meta):
            raise batch_not_found(batch_id)
        return 0


def _row(fields: dict[bytes, bytes]) -> bytes:
    return fields[b"m"].partition(b":")[0]


def _of_batch(batch_id: str, rollout_id: str, at: int) -> str:
    rollout = parse_rollout_id(rollout_id)
    if rollout is None or rollout.batch_id != batch_id:
        raise Invalid(
            "invalid_ack",
            f"field `rollout_ids.{at}`: {rollout_id[:200]!r} is not a rollout of batch {batch_id}",
            {"field": f"rollout_ids.{at}"},
        )
    return rollout.member


def _portions(members: Sequence[str]) -> list[list[str]]:
    """Return distinct members in portions for one script call each, keeping groups together; one empty one for none."""
    portions: list[list[str]] = [[]]
    for _, group in itertools.groupby(sorted(set(members), key=_row_of), key=_row_of):
        if len(portions[-1]) >= ACK_PORTION:
            portions.append([])
        portions[-1] += group
    return portions


def _row_of(member: str) -> str:
    return member.partition(":")[0]


def _check_name(field: str, name: str | None) -> None:
    if name is not None and not is_id(name):
        raise Invalid("invalid_name", f"`{field}` is a text of {ID_PATTERN}; this is {name[:200]!r}", {"field": field})


def _other_unit(consumer: str, own: str, asked: LeaseUnit) -> Conflict:
    return Conflict(
        "unit_conflict",
        f"consumer {consumer} leases this batch by {own}, not by {asked}; lease by {own}, or as another consumer",
        {"consumer": consumer, "unit": own},
    )
