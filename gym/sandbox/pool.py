"""Warm sandboxes of one event loop, so that a rollout does not wait for one to start.

Each serves one rollout and never returns to the pool. Warm ones are kept once one has been taken, at most `warm` of
them and for at most `idle_s`. A sandbox that was taken is killed after `age_s` even if its rollout does not close it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import weakref
from collections import deque
from collections.abc import Coroutine
from functools import cache

from gym.sandbox.base import SandboxProvider, SandboxUnavailable
from gym.sandbox.choose import find_provider
from gym.sandbox.limits import SandboxLimits
from gym.sandbox.process import Sandbox, start_sandbox
from gym.sandbox.settings import SandboxSettings

logger = logging.getLogger(__name__)


CLOSE_S = 10.0


class SandboxPool:
    """Pool of sandboxes for one event loop. Close it before the loop ends; a killed process needs no cleanup."""

    def __init__(
        self,
        provider: SandboxProvider,
        limits: SandboxLimits | None = None,
        *,
        warm: int = 2,
        idle_s: float = 300.0,
        age_s: float = 3600.0,
    ) -> None:
        self._provider = provider
        self._limits = limits or SandboxLimits()
        self._most = warm
        self._idle_s = idle_s
        self._age_s = age_s
        self._warm: deque[Sandbox] = deque()
        self._fills: set[asyncio.Task[None]] = set()
        self._ends: set[asyncio.Task[None]] = set()  # closings of sandboxes, which nothing cancels
        self._filling = False
        self._closed = False

    @property
    def warm(self) -> int:
        """Number of ready sandboxes."""
        return sum(sandbox.is_usable for sandbox in self._warm)

    async def take(self) -> Sandbox:
        """Return a sandbox for one rollout, which must close it. Raises SandboxUnavailable."""
        if self._closed:
            raise SandboxUnavailable("the pool of sandboxes is closed")
        taken: Sandbox | None = None
        while self._warm and taken is None:
            sandbox = self._warm.popleft()
            if sandbox.is_usable:
                taken = sandbox
            else:
                self._keep(sandbox.close(), self._ends)
        if taken is None:
            taken = await start_sandbox(self._provider, self._limits)
        self._end_after(taken, self._age_s)
        if not self._filling:
            self._filling = True
            self._keep(self._fill(), self._fills)
        return taken

    async def close(self) -> None:
        """Kill the warm sandboxes; those that were taken belong to their rollouts."""
        self._closed = True
        for task in self._fills:
            task.cancel()
        await asyncio.gather(*self._fills, return_exceptions=True)
        while self._warm:
            await self._warm.popleft().close()
        if self._ends:  # a closing that is cut leaves pipes open when the event loop ends
            await asyncio.wait(self._ends, timeout=CLOSE_S)

    async def _fill(self) -> None:
        try:
            while self.warm < self._most and not self._closed:
                sandbox = await start_sandbox(self._provider, self._limits)
                self._warm.append(sandbox)
                self._end_after(sandbox, self._idle_s, warm_only=True)
        except SandboxUnavailable as error:
            logger.warning("no warm sandbox: %s", error, extra={"action": "sandbox_not_warm"})
        finally:
            self._filling = False

    def _end_after(self, sandbox: Sandbox, after_s: float, *, warm_only: bool = False) -> None:
        """Kill the sandbox after a while. The timer holds it weakly, so that a closed one can be freed."""
        held = weakref.ref(sandbox)

        def end() -> None:
            found = held()
            if found is None or (warm_only and found not in self._warm):
                return
            with contextlib.suppress(ValueError):
                self._warm.remove(found)
            if found.is_usable:
                self._keep(found.close(), self._ends)

        asyncio.get_running_loop().call_later(after_s, end)

    def _keep(self, work: Coroutine[object, object, None], kept: set[asyncio.Task[None]]) -> None:
        task = asyncio.create_task(work)
        kept.add(task)
        task.add_done_callback(kept.discard)


@cache
def _pools() -> weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, SandboxPool]:
    return weakref.WeakKeyDictionary()


@cache
def _settings() -> weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, SandboxSettings]:
    return weakref.WeakKeyDictionary()


def configure_loop_pool(settings: SandboxSettings) -> None:
    """Set how the pool of the running event loop is made on first use."""
    _settings()[asyncio.get_running_loop()] = settings


def loop_pool() -> SandboxPool:
    """Return the pool of the running event loop, for environments. Raises SandboxUnavailable if no provider works."""
    loop = asyncio.get_running_loop()
    pool = _pools().get(loop)
    if pool is None:
        settings = _settings().get(loop) or SandboxSettings()
        pool = _pools()[loop] = SandboxPool(find_provider(settings), settings.limits(), warm=settings.warm)
    return pool


async def close_loop_pool() -> None:
    """End the warm sandboxes of `loop_pool` on this event loop."""
    if pool := _pools().pop(asyncio.get_running_loop(), None):
        await pool.close()
