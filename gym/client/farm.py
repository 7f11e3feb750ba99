"""The farm and its batches as a trainer holds them, for asyncio and for threads.

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
from gym.client.records import Event, Result, View
from gym.client.sessions import AsyncSession, Session
from gym.client.transport import AsyncTransport, SyncTransport
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
    """A farm for asyncio; nothing is sent yet.

    `timeout_s` bounds each silence of a call. A call is repeated for up to `retry_s` after a lost connection, a 429 or
    a 5xx that may pass, so that a restart of the farm is not noticed; a warning is logged after 2 s. `retries` bounds
    the number of repeats, too. Raises Invalid where the address is not one of a farm.
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
    """As `connect`, with methods that block."""
    policy = RetryPolicy(budget_s=retry_s, retries=retries)
    return Farm(SyncTransport(url, api_key=api_key, timeout_s=timeout_s, policy=policy))


class ResultPages:
    """Where a reader of a completion log is.

    `after` is the cursor before the page in hand until all of it has been taken, so whoever stores it and comes back
    with it misses nothing, and may see the last page again.
    """

    def __init__(self, batch_id: str, *, view: View, after: str | None) -> None:
        self.after = after
        self.done = False
        self._batch_id = batch_id
        self._view: View = view
        self._next: tuple[str | None, bool] = (after, False)

    def flow(self, wait_s: float) -> Flow[tuple[Result, ...]]:
        """The next page; it counts as taken when the one after it is asked for, or on `taken`."""
        page = yield from calls.results_page(self._batch_id, view=self._view, after=self.after, wait_s=wait_s)
        self._next = (page.next_after, page.done)
        return page.items

    def taken(self) -> None:
        """Move the cursor behind the page in hand."""
        next_after, self.done = self._next
        self.after = next_after if next_after is not None else self.after


class AsyncResults:
    """Results as they finish: `async for result in batch.results()`. Ends when the batch is done."""

    def __init__(self, transport: AsyncTransport, pages: ResultPages) -> None:
        self._transport = transport
        self._pages = pages

    @property
    def after(self) -> str | None:
        """The cursor to come back with; see ResultPages."""
        return self._pages.after

    @property
    def done(self) -> bool:
        """Whether nothing will follow."""
        return self._pages.done

    async def page(self, wait_s: float = LONG_POLL_S) -> tuple[Result, ...]:
        """The next page, empty where nothing came within `wait_s`."""
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
        """The cursor to come back with; see ResultPages."""
        return self._pages.after

    @property
    def done(self) -> bool:
        """Whether nothing will follow."""
        return self._pages.done

    def page(self, wait_s: float = LONG_POLL_S) -> tuple[Result, ...]:
        """The next page, empty where nothing came within `wait_s`."""
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
    """A batch of an AsyncFarm. `created` is the farm's answer to its submission, if this program made it."""

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
        """Results as they finish, from the start or after a cursor; a lost connection is taken up again."""
        return AsyncResults(self.transport, ResultPages(self.batch_id, view=view, after=after))

    def leased(
        self, consumer: str, *, most: int = 64, ttl_s: float = 300.0, view: View = "light"
    ) -> AsyncGenerator[Result]:
        """Results that are acknowledged as they are used up; a process that dies leaves its share to the next.

        A result is used up when the next one is asked for. Leased `most` at a time; what is not used up within `ttl_s`
        is handed out again. Ends when this consumer has acknowledged everything.
        """
        reader = rollout_leases(self.batch_id, consumer, most=most, ttl_s=ttl_s, view=view)
        return each_async(self.transport, reader)

    def leased_groups(
        self, consumer: str, *, most: int = 8, ttl_s: float = 300.0, view: View = "light"
    ) -> AsyncGenerator[tuple[Result, ...]]:
        """As `leased`, whole groups of which every rollout has ended."""
        reader = group_leases(self.batch_id, consumer, most=most, ttl_s=ttl_s, view=view)
        return each_async(self.transport, reader)

    def events(self, *, after: str | None = None) -> AsyncGenerator[Event]:
        """What happens in the batch until it has ended, from the start or after an event's cursor."""
        return each_async(self.transport, EventReader(self.batch_id, after=after))


class Batch:
    """A batch of a Farm. `created` is the farm's answer to its submission, if this program made it."""

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
        """Results as they finish, from the start or after a cursor; a lost connection is taken up again."""
        return Results(self.transport, ResultPages(self.batch_id, view=view, after=after))

    def leased(
        self, consumer: str, *, most: int = 64, ttl_s: float = 300.0, view: View = "light"
    ) -> Generator[Result, None, None]:
        """Results that are acknowledged as they are used up; a process that dies leaves its share to the next.

        A result is used up when the next one is asked for. Leased `most` at a time; what is not used up within `ttl_s`
        is handed out again. Ends when this consumer has acknowledged everything.
        """
        reader = rollout_leases(self.batch_id, consumer, most=most, ttl_s=ttl_s, view=view)
        return each_blocking(self.transport, reader)

    def leased_groups(
        self, consumer: str, *, most: int = 8, ttl_s: float = 300.0, view: View = "light"
    ) -> Generator[tuple[Result, ...], None, None]:
        """As `leased`, whole groups of which every rollout has ended."""
        reader = group_leases(self.batch_id, consumer, most=most, ttl_s=ttl_s, view=view)
        return each_blocking(self.transport, reader)

    def events(self, *, after: str | None = None) -> Generator[Event, None, None]:
        """What happens in the batch until it has ended, from the start or after an event's cursor."""
        return each_blocking(self.transport, EventReader(self.batch_id, after=after))


class AsyncFarm:
    """A farm, for asyncio: `async with connect(url) as farm`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self.transport = transport

    async def submit(self, rows: Iterable[JsonObject], **options: Unpack[BatchOptions]) -> AsyncBatch:
        """Submit rows as a batch; see `gym.client.calls.submit`. Repeating it with a `batch_id` changes nothing.

        Raises Invalid, naming row and field, before anything is sent where a row is not JSON.
        """
        created = await self.transport.run(calls.submit(rows, options))
        return AsyncBatch(self.transport, created.batch_id, created.raw)

    async def open_session(
        self, environment: str, row: JsonObject, *, seed: int | None = None, session_id: str | None = None
    ) -> AsyncSession:
        """Open an environment for a loop of your own; see `gym.client.sessions`."""
        opened = await self.transport.run(sessions.open_session(environment, row, seed=seed, session_id=session_id))
        return AsyncSession(self.transport, opened)

    def batch(self, batch_id: str) -> AsyncBatch:
        """A batch that exists; nothing is sent."""
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
    """A farm whose methods block: `with connect_sync(url) as farm`."""

    def __init__(self, transport: SyncTransport) -> None:
        self.transport = transport

    def submit(self, rows: Iterable[JsonObject], **options: Unpack[BatchOptions]) -> Batch:
        """Submit rows as a batch; see `gym.client.calls.submit`. Repeating it with a `batch_id` changes nothing.

        Raises Invalid, naming row and field, before anything is sent where a row is not JSON.
        """
        created = self.transport.run(calls.submit(rows, options))
        return Batch(self.transport, created.batch_id, created.raw)

    def open_session(
        self, environment: str, row: JsonObject, *, seed: int | None = None, session_id: str | None = None
    ) -> Session:
        """Open an environment for a loop of your own; see `gym.client.sessions`."""
        opened = self.transport.run(sessions.open_session(environment, row, seed=seed, session_id=session_id))
        return Session(self.transport, opened)

    def batch(self, batch_id: str) -> Batch:
        """A batch that exists; nothing is sent."""
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
