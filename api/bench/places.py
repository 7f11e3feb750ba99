"""Places of an environment: the worker, its threads, a process, a sandbox, behind HTTP or a WebSocket.

Sessions are made as a worker makes them; servers are the farm's stand-ins, each in its own process.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import httpx
from pydantic import Field

from api.local.local_farm import free_port
from gym.environments.base import Row, tool
from gym.environments.builtin.stateful_counter import StatefulCounter
from gym.environments.hosting.process_session import new_session
from gym.environments.hosting.processes import EnvironmentProcesses
from gym.environments.hosting.session import EnvironmentSession
from gym.environments.hosting.threads import EnvironmentThreads
from gym.environments.registry import load_source
from gym.environments.sandboxed import SandboxedEnvironment
from gym.environments.settings import EnvironmentEntry, Isolation
from gym.jsontypes import JsonObject
from gym.processes.subprocesses import start_process
from gym.sandbox.choose import find_provider
from gym.sandbox.pool import close_loop_pool, configure_loop_pool, loop_pool
from gym.sandbox.settings import SandboxSettings
from gym.trajectory import Trajectory

READY_S = 60.0
COUNT = '{"count":1}'


class AwaitedCounter(StatefulCounter):
    """The counter, with a tool that is a coroutine."""

    @tool
    async def increment_counter(  # type: ignore[override]  # tools are called through a session, which awaits
        self, count: Annotated[int, Field(description="How much to add.")]
    ) -> dict[str, bool]:
        """Add to the counter."""
        self.count += count
        return {"success": True}


class BlockingCounter(StatefulCounter):
    """The counter, in threads."""

    blocking = True


class Boxed(SandboxedEnvironment[Row]):
    """`python_exec` and `bash`, with the sandbox taken in `setup` so that its cost shows there."""

    name = "boxed"

    async def setup(self) -> None:
        """Take a sandbox."""
        await self.sandbox()

    def verify(self, trajectory: Trajectory) -> float:  # noqa: ARG002  nothing is scored
        """Return no reward."""
        return 0.0

    @classmethod
    def example_row(cls) -> JsonObject:
        """Return a row without fields of its own."""
        return {"responses_create_params": {"input": "x"}}


async def _nothing() -> None:
    """Do nothing, in places without a delay."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenPlace:
    """A kind of place, ready for sessions: functions that make one, make one call, and wait between steps.

    With `ends` a process ends with each session, and its CPU is read before that.
    """

    session: Callable[[], EnvironmentSession]
    call: Callable[[EnvironmentSession], Awaitable[object]]
    settled: Callable[[], Awaitable[object]] = _nothing
    ends: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HostingPlace:
    """A place of an environment, and how many calls and sessions of it are measured."""

    name: str
    open: Callable[[], AbstractAsyncContextManager[OpenPlace]]
    calls: int
    sessions: int


async def _count(session: EnvironmentSession) -> None:
    called = await session.call_tool("increment_counter", COUNT)
    if called.failed:
        raise RuntimeError(f"the tool failed: {called.output}")


async def _execute(session: EnvironmentSession, *, name: str, arguments: str) -> None:
    called = await session.call_tool(name, arguments)
    if called.failed or '"exit_code":0' not in called.output:
        raise RuntimeError(f"the sandbox failed: {called.output}")


@asynccontextmanager
async def _in_worker(
    entry: EnvironmentEntry, *, keep: int = 2, row: JsonObject | None = None
) -> AsyncIterator[OpenPlace]:
    """Make a session as a worker does, in its process or in a separate one."""
    kind = load_source(entry)
    if kind.cls is None:
        raise RuntimeError(f"{kind.name}: {kind.error}")
    data = row or kind.example_row or {}
    processes = EnvironmentProcesses(2, keep=keep)
    with EnvironmentThreads(2) as threads:
        try:
            yield OpenPlace(
                session=lambda: new_session(kind, data, seed=0, executor=threads, processes=processes),
                call=_count,
                ends=keep == 0,
            )
        finally:
            await processes.close()


@asynccontextmanager
async def _boxed(name: str, arguments: str, *, warm: int) -> AsyncIterator[OpenPlace]:
    """Make a session with a sandbox of the pool. Raises SandboxUnavailable."""
    settings = SandboxSettings(warm=warm)
    find_provider(settings)
    configure_loop_pool(settings)

    async def filled() -> None:
        async with asyncio.timeout(READY_S):
            while loop_pool().warm < warm:  # noqa: ASYNC110 - the pool has no event for it, and needs none
                await asyncio.sleep(0.002)

    async with _in_worker(EnvironmentEntry(name="boxed", use=f"{__name__}:Boxed")) as opened:
        try:
            first = await loop_pool().take()  # from the first one on some are kept warm
            await first.close()
            yield OpenPlace(
                session=opened.session,
                call=partial(_execute, name=name, arguments=arguments),
                settled=filled,
                ends=True,
            )
        finally:
            await close_loop_pool()


@asynccontextmanager
async def _server(module: str, path: str) -> AsyncIterator[str]:
    """Run a stand-in for a server as a separate process and yield its address."""
    port = free_port()
    process = await start_process([sys.executable, "-m", module, "--port", str(port)], environment=os.environ)
    url = f"http://127.0.0.1:{port}"
    try:
        async with asyncio.timeout(READY_S), httpx.AsyncClient() as client:
            while process.returncode is None:
                with contextlib.suppress(httpx.TransportError):
                    await client.get(f"{url}{path}")
                    break
                await asyncio.sleep(0.05)
        yield url
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@asynccontextmanager
async def _nemo_gym() -> AsyncIterator[OpenPlace]:
    row = {**StatefulCounter.example_row()}
    row["responses_create_params"] = {
        **row["responses_create_params"],
        "tools": [{"type": "function", "name": "increment_counter", "parameters": {}}],
    }
    async with (
        _server("gym.testing.resources_server", "/") as url,
        _in_worker(_of_server("nemo_gym", url), row=row) as opened,
    ):
        yield opened


async def _guess(session: EnvironmentSession) -> None:
    await session.step({"number": 1})


@asynccontextmanager
async def _openenv() -> AsyncIterator[OpenPlace]:
    async with (
        _server("gym.testing.openenv_server", "/admin/state") as url,
        _in_worker(_of_server("openenv", url)) as opened,
    ):
        yield OpenPlace(session=opened.session, call=_guess)


def _own(cls: type[StatefulCounter], isolation: Isolation = "worker") -> EnvironmentEntry:
    return EnvironmentEntry(name="counter", use=f"{cls.__module__}:{cls.__qualname__}", isolation=isolation)


def _of_server(adapter: str, url: str) -> EnvironmentEntry:
    return EnvironmentEntry.model_validate({"name": adapter, "adapter": adapter, "urls": [url]})


_PYTHON, _BASH = ("python_exec", '{"code":"print(1)"}'), ("bash", '{"command":"echo 1"}')
PLACES = (
    HostingPlace(name="in process", open=partial(_in_worker, _own(StatefulCounter)), calls=2000, sessions=500),
    HostingPlace(
        name="in process, async tool", open=partial(_in_worker, _own(AwaitedCounter)), calls=2000, sessions=500
    ),
    HostingPlace(name="thread", open=partial(_in_worker, _own(BlockingCounter)), calls=2000, sessions=500),
    HostingPlace(
        name="process", open=partial(_in_worker, _own(StatefulCounter, isolation="process")), calls=500, sessions=100
    ),
    HostingPlace(
        name="process, new one",
        open=partial(_in_worker, _own(StatefulCounter, isolation="process"), keep=0),
        calls=0,
        sessions=3,
    ),
    HostingPlace(name="sandbox, warm, bash", open=partial(_boxed, *_BASH, warm=1), calls=30, sessions=15),
    HostingPlace(name="sandbox, cold, python_exec", open=partial(_boxed, *_PYTHON, warm=0), calls=30, sessions=15),
    HostingPlace(name="HTTP, NeMo Gym's shape", open=_nemo_gym, calls=500, sessions=100),
    HostingPlace(name="WebSocket, OpenEnv's shape", open=_openenv, calls=500, sessions=100),
)
