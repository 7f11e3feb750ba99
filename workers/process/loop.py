"""The one event loop of a worker process, on a thread of its own beside Celery's."""

from __future__ import annotations

import asyncio
import faulthandler
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

import uvloop

WATCHDOG_S = 5.0
STDERR = 2  # the descriptor itself, not Celery's replacement of it
Result = TypeVar("Result")


async def keep_watchdog(hang_s: float) -> None:
    """End the process, with all its stacks on standard error, once this loop has stood still for so long.

    Its rollouts then run again elsewhere; otherwise the lease's thread would keep them here for ever. Until cancelled.
    """
    try:
        while True:
            faulthandler.dump_traceback_later(hang_s, exit=True, file=STDERR)
            await asyncio.sleep(min(WATCHDOG_S, hang_s / 3))
    finally:
        faulthandler.cancel_dump_traceback_later()


class LoopThread:
    """An event loop in a thread, which runs coroutines submitted from other threads."""

    def __init__(self, name: str) -> None:
        self.loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread; returns once the loop runs."""
        running = threading.Event()
        self.loop.call_soon(running.set)
        self._thread.start()
        running.wait(10)

    def submit(self, coroutine: Coroutine[Any, Any, Result]) -> Future[Result]:
        """Run a coroutine on the loop; the returned future is for threads."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def stop(self, timeout_s: float) -> None:
        """Cancel the remaining tasks and end the thread."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            left = asyncio.all_tasks(self.loop)
            for task in left:
                task.cancel()
            self.loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.close()
