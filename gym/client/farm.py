"""Farm and batch objects of a trainer, for asyncio and for threads.

Every call is written once, as a flow in `gym.client.calls`; `_awaiting` and `_blocking` make its two methods.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Iterable, Iterator
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar, Unpack

from gym.client import calls, sessions
from gym.client.calls import BatchOptions
from gym.client.exchange import Flow, RetryPolicy
from gym.client.feed import LONG_POLL_S, EventReader, each_async, each_blocking, group_leases, rollout_leases
from gym.client.given import Given
from gym.client.records import Event, Result, View
from gym.client.sessions import AsyncSession, Session
from gym.client.transport import AsyncTransport, SyncTransport
from gym.errors import Conflict
from gym.jsontypes import JsonObject

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., object])

DEFAULT_TIMEOUT_S = 60.0
DEFAULT_RETRY_S = 150.0


def connect(
    url: str,
    *,
    api_key: str | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    retry_s: float = DEFAULT_RETRY_S,
    retries: int | None = None,
) -> AsyncFarm:
    """Return a farm for asyncio; no request is sent yet.

    `timeout_s` bounds each period of silence in a call. A call is retried for up to `retry_s` after a lost connection,
    a 429 or a temporary 5xx, so that a restart of the farm is not noticed; a warning is logged after 2 s. `retries`
    also bounds the number of retries. Raises Invalid if the address cannot be one of a farm.
    """
    policy = RetryPolicy(budget_s=retry_s, retries=retries)
    return AsyncFarm(AsyncTransport(url, api_key=api_key, timeout_s=timeout_s, policy=policy))


def connect_sync(
    url: str,
    *,
    api_key: str | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    retry_s: float = DEFAULT_RETRY_S,
    retries: int | None = None,
) -> Farm:
    """Return a farm with blocking methods; otherwise as `connect`."""
    policy = RetryPolicy(budget_s=retry_s, retries=retries)
    return Farm(SyncTransport(url, api_key=api_key, timeout_s=timeout_s, policy=policy))


class ResultPages:
    """Position of a reader in a completion log.

    `after` is the cursor before the current page until all of it has been taken. A program that stores it and resumes
    there misses nothing, and may see the last page again.

    If the log went back behind the cursor (`gym.client.given`), reading resumes at the last valid position.
    """

    def __init__(self, batch_id: str, *, view: View, after: str | None) -> None:
        self.after = after
        self.done = False
        self._batch_id = batch_id
        self._view: View = view
        self._next: tuple[str | None, bool] = (after, False)
        self._given = Given(batch_id)

    def flow(self, wait_s: float) -> Flow[tuple[Result, ...]]:
        """Fetch the next page; a page counts as taken when the next one is requested, or on `taken`."""
        while True:
            try:
                page = yield from calls.results_page(self._batch_id, view=self._view, after=self.after, wait_s=wait_s)
            except Conflict as error:
                self.after = self._given.went_back_to(error)
            else:
                break
        self._next = (page.next_after, page.done)
        fresh = tuple(result for result in page.items if not self._given.passes_over([result]))
        self._given.note(page.next_after, fresh)
        return fresh

    @property
    def went_back(self) -> int:
        """Number of times that the log went back behind this reader."""
        return self._given.went_back

    @property
    def repeated(self) -> int:
        """Number of repeated results that were skipped as a consequence."""
        return self._given.repeated

    def taken(self) -> None:
        """Move the cursor past the current page."""
        next_after, self.done = self._next
        self.after = next_after if next_after is not None else self.after


class AsyncResults:
    """Results as they finish: `async for result in batch.results()`. Ends when the batch is done."""

    def __init__(self, transport: AsyncTransport, pages: ResultPages) -> None:
        self._transport = transport
        self._pages = pages

    @property
    def after(self) -> str | None:
        """Cursor to resume from; see ResultPages."""
        return self._pages.after

    @property
    def done(self) -> bool:
        """Whether no more results follow."""
        return self._pages.done

    @property
    def went_back(self) -> int:
        """Number of times that Redis lost its last writes behind this reader; each is logged as a warning."""
        return self._pages.went_back

    @property
    def repeated(self) -> int:
        """Number of results that came again for that reason; they are skipped."""
        return self._pages.repeated

    async def page(self, wait_s: float = LONG_POLL_S) -> tuple[Result, ...]:
        """Return the next page, empty if no result came within `wait_s`."""
        items = await self._transport.run(self._pages.flow(wait_s))
        self._pages.taken()
        return items

    async def __aiter__(self) -> AsyncIterator[Result]:
        while not self._pages.done:
            for result in await self._transport.run(self._pages.flow(LONG_POLL_S)):
                yield result
            self._pages.taken()


class Results:
    """Results as they finish: `for result in batch.results()`. Ends when the batch is done."""

    def __init__(self, transport: SyncTransport, pages: ResultPages) -> None:
        self._transport = transport
        self._pages = pages

    @property
    def after(self) -> str | None:
        """Cursor to resume from; see ResultPages."""
        return self._pages.after

    @property
    def done(self) -> bool:
        """Whether no more results follow."""
        return self._pages.done

    @property
    def went_back(self) -> int:
        """Number of times that Redis lost its last writes behind this reader; each is logged as a warning."""
        return self._pages.went_back

    @property
    def repeated(self) -> int:
        """Number of results that came again for that reason; they are skipped."""
        return self._pages.repeated

    def page(self, wait_s: float = LONG_POLL_S) -> tuple[Result, ...]:
        """Return the next page, empty if no result came within `wait_s`."""
        items = self._transport.run(self._pages.flow(wait_s))
        self._pages.taken()
        return items

    def __iter__(self) -> Iterator[Result]:
        while not self._pages.done:
            yield from self._transport.run(self._pages.flow(LONG_POLL_S))
            self._pages.taken()


def _named(method: F, call: Callable[..., object]) -> F:
    """Give a method the name and the docstring of its call; not `wraps`, whose signature would be the call's."""
    method.__name__ = call.__name__
    method.__doc__ = call.__doc__
    return method


def _awaiting(call: Callable[P, Flow[T]]) -> Callable[Concatenate[AsyncFarm, P], Coroutine[Any, Any, T]]:
    async def method(farm: AsyncFarm, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await farm.transport.run(call(*args, **kwargs))

    return _named(method, call)


def _blocking(call: Callable[P, Flow[T]]) -> Callable[Concatenate[Farm, P], T]:
    def method(farm: Farm, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return farm.transport.run(call(*args, **kwargs))

    return _named(method, call)


def _awaiting_of(
    call: Callable[Concatenate[str, P], Flow[T]],
) -> Callable[Concatenate[AsyncBatch, P], Coroutine[Any, Any, T]]:
    async def method(batch: AsyncBatch, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await batch.transport.run(call(batch.batch_id, *args, **kwargs))

    return _named(method, call)


def _blocking_of(call: Callable[Concatenate[str, P], Flow[T]]) -> Callable[Concatenate[Batch, P], T]:
    def method(batch: Batch, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return batch.transport.run(call(batch.batch_id, *args, **kwargs))

    return _named(method, call)


class AsyncBatch:
    """A batch of an AsyncFarm. `created` is the response to its submission, if this program made it."""

    def __init__(self, transport: AsyncTransport, batch_id: str, created: JsonObject | None = None) -> None:
        self.transport = transport
        self.batch_id = batch_id
        self.created = created

    status = _awaiting_of(calls.status)
    wait = _awaiting_of(calls.wait)
    cancel = _awaiting_of(calls.cancel_batch)
    seal = _awaiting_of(calls.seal)
    add_rows = _awaiting_of(calls.add_rows)
    requeue = _awaiting_of(calls.requeue)
    lease = _awaiting_of(calls.lease)
    ack = _awaiting_of(calls.ack)
    rejudge = _awaiting_of(calls.rejudge)

    def results(self, *, view: View = "light", after: str | None = None) -> AsyncResults:
        """Return results as they finish, from the start or after a cursor; a lost connection is restored."""
        return AsyncResults(self.transport, ResultPages(self.batch_id, view=view, after=after))

    def leased(
        self, consumer: str, *, most: int = 64, ttl_s: float = 300.0, view: View = "light"
    ) -> AsyncGenerator[Result]:
        """Yield results that are acknowledged as they are used; a process that dies leaves the rest to the next one.

        A result counts as used when the next one is requested. Results are leased `most` at a time; those not used
        within `ttl_s` are handed out again. Ends when this consumer has acknowledged everything.
        """
        reader = rollout_leases(self.batch_id, consumer, most=most, ttl_s=ttl_s, view=view)
        return each_async(self.transport, reader)

    def leased_groups(
        self, consumer: str, *, most: int = 8, ttl_s: float = 300.0, view: View = "light"
    ) -> AsyncGenerator[tuple[Result, ...]]:
        """Yield whole groups of which every rollout has ended; otherwise as `leased`."""
        reader = group_leases(self.batch_id, consumer, most=most, ttl_s=ttl_s, view=view)
        return each_async(self.transport, reader)

    def events(self, *, after: str | None = None) -> AsyncGenerator[Event]:
        """Yield the events of the batch until it has ended, from the start or after an event's cursor."""
        return each_async(self.transport, EventReader(self.batch_id, after=after))


class Batch:
    """A batch of a Farm. `created` is the response to its submission, if this program made it."""

    def __init__(self, transport: SyncTransport, batch_id: str, created: JsonObject | None = None) -> None:
        self.transport = transport
        self.batch_id = batch_id
        self.created = created

    status = _blocking_of(calls.status)
    wait = _blocking_of(calls.wait)
    cancel = _blocking_of(calls.cancel_batch)
    seal = _blocking_of(calls.seal)
    add_rows = _blocking_of(calls.add_rows)
    requeue = _blocking_of(calls.requeue)
    lease = _blocking_of(calls.lease)
    ack = _blocking_of(calls.ack)
    rejudge = _blocking_of(calls.rejudge)

    def results(self, *, view: View = "light", after: str | None = None) -> Results:
        """Return results as they finish, from the start or after a cursor; a lost connection is restored."""
        return Results(self.transport, ResultPages(self.batch_id, view=view, after=after))

    def leased(
        self, consumer: str, *, most: int = 64, ttl_s: float = 300.0, view: View = "light"
    ) -> Generator[Result, None, None]:
        """Yield results that are acknowledged as they are used; a process that dies leaves the rest to the next one.

        A result counts as used when the next one is requested. Results are leased `most` at a time; those not used
        within `ttl_s` are handed out again. Ends when this consumer has acknowledged everything.
        """
        reader = rollout_leases(self.batch_id, consumer, most=most, ttl_s=ttl_s, view=view)
        return each_blocking(self.transport, reader)

    def leased_groups(
        self, consumer: str, *, most: int = 8, ttl_s: float = 300.0, view: View = "light"
    ) -> Generator[tuple[Result, ...], None, None]:
        """Yield whole groups of which every rollout has ended; otherwise as `leased`."""
        reader = group_leases(self.batch_id, consumer, most=most, ttl_s=ttl_s, view=view)
        return each_blocking(self.transport, reader)

    def events(self, *, after: str | None = None) -> Generator[Event, None, None]:
        """Yield the events of the batch until it has ended, from the start or after an event's cursor."""
        return each_blocking(self.transport, EventReader(self.batch_id, after=after))


class AsyncFarm:
    """A farm, for asyncio: `async with connect(url) as farm`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self.transport = transport

    async def submit(self, rows: Iterable[JsonObject], **options: Unpack[BatchOptions]) -> AsyncBatch:
        """Submit rows as a batch; see `gym.client.calls.submit`. Idempotent with a `batch_id`.

        Raises Invalid, naming row and field, before any request if a row cannot be written as JSON.
        """
        created = await self.transport.run(calls.submit(rows, options))
        return AsyncBatch(self.transport, created.batch_id, created.raw)

    async def open_session(
        self, environment: str, row: JsonObject, *, seed: int | None = None, session_id: str | None = None
    ) -> AsyncSession:
        """Open an environment for your own agent loop; see `gym.client.sessions`."""
        opened = await self.transport.run(sessions.open_session(environment, row, seed=seed, session_id=session_id))
        return AsyncSession(self.transport, opened)

    def batch(self, batch_id: str) -> AsyncBatch:
        """Return an existing batch; no request is sent."""
        return AsyncBatch(self.transport, batch_id)

    batches = _awaiting(calls.batches)
    cancel = _awaiting(calls.cancel)
    rollout = _awaiting(calls.rollout)
    environments = _awaiting(calls.environments)
    judges = _awaiting(calls.judges)
    environment = _awaiting(calls.environment)
    put_policy = _awaiting(calls.put_policy)
    policies = _awaiting(calls.policies)
    delete_policy = _awaiting(calls.delete_policy)
    workers = _awaiting(calls.workers)
    queues = _awaiting(calls.queues)
    ready = _awaiting(calls.ready)

    async def close(self) -> None:
        """Close the connections."""
        await self.transport.close()

    async def __aenter__(self) -> AsyncFarm:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class Farm:
    """A farm with blocking methods: `with connect_sync(url) as farm`."""

    def __init__(self, transport: SyncTransport) -> None:
        self.transport = transport

    def submit(self, rows: Iterable[JsonObject], **options: Unpack[BatchOptions]) -> Batch:
        """Submit rows as a batch; see `gym.client.calls.submit`. Idempotent with a `batch_id`.

        Raises Invalid, naming row and field, before any request if a row cannot be written as JSON.
        """
        created = self.transport.run(calls.submit(rows, options))
        return Batch(self.transport, created.batch_id, created.raw)

    def open_session(
        self, environment: str, row: JsonObject, *, seed: int | None = None, session_id: str | None = None
    ) -> Session:
        """Open an environment for your own agent loop; see `gym.client.sessions`."""
        opened = self.transport.run(sessions.open_session(environment, row, seed=seed, session_id=session_id))
        return Session(self.transport, opened)

    def batch(self, batch_id: str) -> Batch:
        """Return an existing batch; no request is sent."""
        return Batch(self.transport, batch_id)

    batches = _blocking(calls.batches)
    cancel = _blocking(calls.cancel)
    rollout = _blocking(calls.rollout)
    environments = _blocking(calls.environments)
    judges = _blocking(calls.judges)
    environment = _blocking(calls.environment)
    put_policy = _blocking(calls.put_policy)
    policies = _blocking(calls.policies)
    delete_policy = _blocking(calls.delete_policy)
    workers = _blocking(calls.workers)
    queues = _blocking(calls.queues)
    ready = _blocking(calls.ready)

    def close(self) -> None:
        """Close the connections."""
        self.transport.close()

    def __enter__(self) -> Farm:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
