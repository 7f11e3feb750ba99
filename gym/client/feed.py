"""Readers that continue from page to page: leases that are acknowledged as they are used, and events.

A reader is a set of flows and the state between them; `each_async` and `each_blocking` carry it out, item by item. An
item counts as used when the next one is requested: a program that stops within one gets it again.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Sequence
from contextlib import suppress
from typing import Generic, Protocol, TypeVar

from gym.client import calls
from gym.client.exchange import Flow
from gym.client.given import Given
from gym.client.records import Event, Lease, Result, Unit, View
from gym.client.transport import AsyncTransport, SyncTransport
from gym.errors import Conflict, FarmError

T = TypeVar("T")

LONG_POLL_S = 20.0
NAMED_AT_ONCE = 10_000
START = "0-0"  # the position before the first lease


class Reader(Protocol[T]):
    """Interface that `each_async` and `each_blocking` drive."""

    done: bool

    def next(self, wait_s: float) -> Flow[Sequence[T]]:
        """Fetch more items, none if none came within `wait_s`; the previous ones are used."""

    def used(self, item: T) -> None:
        """Mark an item as used."""

    def leave(self) -> Flow[None]:
        """Stop reading."""


class LeaseReader(Generic[T]):
    """Reader that leases units, and acknowledges a lease when all of it has been used, or the used part on leaving.

    Units not used within `ttl_s` go to the next caller, so choose a time longer than the use of `most`. It ends when
    this consumer, in all its processes, has acknowledged every unit of the ended batch. Units that come again because
    Redis lost its last writes are acknowledged and skipped, and a warning is logged.
    """

    def __init__(
        self,
        batch_id: str,
        consumer: str,
        *,
        unit: Unit,
        items: Callable[[Lease], Sequence[T]],
        results: Callable[[T], Sequence[Result]],
        most: int,
        ttl_s: float,
        view: View,
    ) -> None:
        self.done = False
        self._batch_id = batch_id
        self._consumer = consumer
        self._unit: Unit = unit
        self._items = items
        self._results = results
        self._most = most
        self._ttl_s = ttl_s
        self._view: View = view
        self._lease: Lease | None = None
        self._used: list[T] = []
        self._position = START
        self._given = Given(batch_id, acknowledged=True)

    def next(self, wait_s: float) -> Flow[Sequence[T]]:
        """Acknowledge the current lease, and take another one."""
        yield from self.leave()
        while True:
            try:
                lease = yield from calls.lease(
                    self._batch_id,
                    consumer=self._consumer,
                    most=self._most,
                    ttl_s=self._ttl_s,
                    unit=self._unit,
                    view=self._view,
                    wait_s=wait_s,
                    position=self._position,
                )
            except Conflict as error:
                self._given.went_back_to(error)
                self._position = START
                for names in self._given.remembered(NAMED_AT_ONCE):  # these acknowledgements may be lost
                    yield from calls.ack(self._batch_id, consumer=self._consumer, rollout_ids=names)
            else:
                break
        self.done = lease.done
        self._lease = lease
        self._position = lease.position or START
        items = self._items(lease)
        self._used = [item for item in items if self._given.passes_over(self._results(item))]
        fresh = [item for item in items if item not in self._used] if self._used else items
        self._given.note(lease.position, [result for item in fresh for result in self._results(item)])
        return fresh

    def used(self, item: T) -> None:
        """Mark a unit; it is acknowledged with its lease."""
        self._used.append(item)

    def leave(self) -> Flow[None]:
        """Acknowledge the used units; the rest of the lease is handed out again."""
        lease = self._lease
        if lease is None or not self._used:
            return
        if len(self._used) == len(self._items(lease)):
            yield from calls.ack(self._batch_id, consumer=self._consumer, lease_id=lease.lease_id)
        else:
            for names in self._named():
                yield from calls.ack(
                    self._batch_id, consumer=self._consumer, lease_id=lease.lease_id, rollout_ids=names
                )
        self._lease, self._used = None, []

    def _named(self) -> Iterator[list[str]]:
        """Return the used rollouts, in portions of whole units."""
        names: list[str] = []
        for item in self._used:
            more = [result.rollout_id for result in self._results(item)]
            if names and len(names) + len(more) > NAMED_AT_ONCE:
                yield names
                names = []
            names += more
        yield names


def rollout_leases(batch_id: str, consumer: str, *, most: int, ttl_s: float, view: View) -> LeaseReader[Result]:
    """Return a reader of single results."""
    return LeaseReader(
        batch_id,
        consumer,
        unit="rollout",
        items=lambda lease: lease.items,
        results=lambda result: (result,),
        most=most,
        ttl_s=ttl_s,
        view=view,
    )


def group_leases(
    batch_id: str, consumer: str, *, most: int, ttl_s: float, view: View
) -> LeaseReader[tuple[Result, ...]]:
    """Return a reader of whole groups."""
    return LeaseReader(
        batch_id,
        consumer,
        unit="group",
        items=lambda lease: lease.groups,
        results=lambda group: group,
        most=most,
        ttl_s=ttl_s,
        view=view,
    )


class EventReader:
    """Reader that polls for events; states that it has already reported are skipped."""

    def __init__(self, batch_id: str, *, after: str | None) -> None:
        self.after = after
        self.done = False
        self._batch_id = batch_id
        self._batch: tuple[object, ...] = ()
        self._ledger: object = None

    def next(self, wait_s: float) -> Flow[Sequence[Event]]:
        """Fetch the events since the last one that was used."""
        events = yield from calls.events_page(self._batch_id, after=self.after, wait_s=wait_s)
        self.done = bool(events) and events[-1].kind == "batch" and events[-1].data["ended_at"] is not None
        return [event for event in events if self._is_new(event)]

    def used(self, item: Event) -> None:
        """Move the cursor past the event."""
        self.after = item.after or self.after

    def leave(self) -> Flow[None]:
        """Do nothing."""
        yield from ()

    def _is_new(self, event: Event) -> bool:
        if event.kind == "batch":
            before, self._batch = self._batch, tuple(event.data[name] for name in ("state", "sealed", "ended_at"))
            return self._batch != before
        if event.kind == "ledger":
            ledger, self._ledger = self._ledger, event.data
            return bool(self._ledger != ledger)
        return True


async def each_async(transport: AsyncTransport, reader: Reader[T]) -> AsyncGenerator[T]:
    """Yield every item, until there are no more."""
    try:
        while not reader.done:
            for item in await transport.run(reader.next(LONG_POLL_S)):
                yield item
                reader.used(item)
    finally:
        with suppress(FarmError):  # unacknowledged items come again
            await transport.run(reader.leave())


def each_blocking(transport: SyncTransport, reader: Reader[T]) -> Generator[T, None, None]:
    """Yield every item as `each_async` does, in the calling thread."""
    try:
        while not reader.done:
            for item in transport.run(reader.next(LONG_POLL_S)):
                yield item
                reader.used(item)
    finally:
        with suppress(FarmError):  # as above
            transport.run(reader.leave())
