"""Micro-batching: items arrive one by one, are processed in batches, and each gets its own result.

A batch is sent when it is full, when its first item has waited `max_wait_s`, or when another batch ends while items
wait. At most `most_running` batches run at once. Items whose callers were cancelled before are left out.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class MicroBatcher(Generic[Item, Result]):
    """Batcher for one event loop. `run` returns a result or an exception for each item of a batch, in order."""

    def __init__(
        self,
        run: Callable[[list[Item]], Awaitable[Sequence[Result | Exception]]],
        *,
        max_items: int,
        max_wait_s: float,
        most_running: int = 1,
    ) -> None:
        self._run = run
        self._max_items = max_items
        self._max_wait_s = max_wait_s
        self._most_running = most_running
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self.batches = 0
        self.items = 0

    @property
    def waiting(self) -> int:
        """Number of items that are in no batch yet."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Number of batches being processed."""
        return len(self._running)

    async def submit(self, item: Item) -> Result:
        """Return the item's result. Raises the error of its batch or of the item."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        self._waiting.append((item, future))
        if len(self._waiting) >= self._max_items:
            self._flush()
        elif self._timer is None:
            self._timer = loop.call_later(self._max_wait_s, self._flush)
        return await future

    async def close(self) -> None:
        """Cancel waiting items and running batches."""
        for _, future in self._waiting:
            future.cancel()
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting and len(self._running) < self._most_running:
            batch: list[tuple[Item, asyncio.Future[Result]]] = []
            while self._waiting and len(batch) < self._max_items:
                item, future = self._waiting.popleft()
                if not future.done():
                    batch.append((item, future))
            if batch:
                task = asyncio.get_running_loop().create_task(self._work(batch))
                self._running.add(task)
                task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if self._waiting:
            self._flush()

    async def _work(self, batch: list[tuple[Item, asyncio.Future[Result]]]) -> None:
        self.batches += 1
        self.items += len(batch)
        try:
            results = await self._run([item for item, _ in batch])
        except asyncio.CancelledError:
            for _, future in batch:
                future.cancel()
            raise
        except Exception as error:  # noqa: BLE001  passed to the waiting callers
            results = [error] * len(batch)
        for (_, future), result in zip(batch, results, strict=True):
            if future.done():
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)
