"""What a session does with the threads that a blocking environment runs in."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from gym.environments.base import Environment, Row, tool
from gym.environments.hosting.session import EnvironmentSession
from gym.environments.hosting.threads import EnvironmentThreads
from gym.trajectory import Trajectory

pytestmark = pytest.mark.anyio
Open = Callable[..., EnvironmentSession]


class Threaded(Environment[Row]):
    """In threads, with nothing of its own."""

    name = "threaded"
    blocking = True

    def verify(self, trajectory: Trajectory) -> float:
        return 1.0

    @classmethod
    def example_row(cls) -> dict[str, Any]:
        return {"responses_create_params": {"input": "hello"}}


class Gated(Threaded):
    """A tool in a thread that waits until the test lets it go."""

    def __init__(self, row: Row, *, seed: int) -> None:
        super().__init__(row, seed=seed)
        self.entered, self.gate, self.freed = threading.Event(), threading.Event(), threading.Event()
        self.at_work = 0
        self.most_at_work = 0

    @tool
    def wait(self) -> str:
        """Wait."""
        self.at_work += 1
        self.most_at_work = max(self.most_at_work, self.at_work)
        self.entered.set()
        assert self.gate.wait(20)
        self.at_work -= 1
        return threading.current_thread().name

    def close(self) -> None:
        assert self.at_work == 0
        self.freed.set()


async def entered(environment: Gated) -> None:
    assert await asyncio.to_thread(environment.entered.wait, 20)


async def open_gated(open_session: Open, **options: Any) -> tuple[EnvironmentSession, Gated]:
    session = open_session(Gated, **options)
    await session.setup()
    environment = session._ready()
    assert isinstance(environment, Gated)
    return session, environment


async def test_a_blocking_tool_leaves_the_event_loop_free_and_runs_in_the_executor(open_session: Open) -> None:
    session, environment = await open_gated(open_session)
    call = asyncio.create_task(session.call_tool("wait", "{}"))
    await entered(environment)
    environment.gate.set()
    assert (await call).output.startswith("environment-")


async def test_plain_methods_of_one_instance_never_run_at_the_same_time(open_session: Open) -> None:
    entered, gate = threading.Semaphore(0), threading.Semaphore(0)

    class Single(Threaded):
        @tool
        def enter(self) -> None:
            """Enter, and leave when the gate lets one go."""
            entered.release()
            assert gate.acquire(timeout=20)

    session = open_session(Single)
    await session.setup()
    calls = [asyncio.create_task(session.call_tool("enter", "{}")) for _ in range(3)]
    for _ in calls:
        assert await asyncio.to_thread(entered.acquire, timeout=20)
        assert not await asyncio.to_thread(entered.acquire, timeout=0.05)
        gate.release()
    assert not any(call.failed for call in await asyncio.gather(*calls))


async def test_cancellation_comes_through_and_close_waits_for_the_thread(open_session: Open) -> None:
    session, environment = await open_gated(open_session)
    call = asyncio.create_task(session.call_tool("wait", "{}"))
    await entered(environment)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    closing = asyncio.create_task(session.close())
    await asyncio.sleep(0)
    assert not closing.done()
    environment.gate.set()
    await closing
    assert environment.freed.is_set()


async def test_the_next_call_waits_for_a_thread_that_a_cancelled_one_left(open_session: Open) -> None:
    session, environment = await open_gated(open_session)
    first = asyncio.create_task(session.call_tool("wait", "{}"))
    await entered(environment)
    first.cancel()
    second = asyncio.create_task(session.call_tool("wait", "{}"))
    for _ in range(5):
        await asyncio.sleep(0)
    environment.gate.set()
    assert not (await second).failed
    assert environment.most_at_work == 1


async def test_close_is_bounded_and_a_thread_that_outlasts_it_closes_the_environment(
    open_session: Open, caplog: pytest.LogCaptureFixture
) -> None:
    session, environment = await open_gated(open_session, close_timeout_s=0.01)
    call = asyncio.create_task(session.call_tool("wait", "{}"))
    await entered(environment)
    call.cancel()
    with caplog.at_level(logging.WARNING), anyio.fail_after(20):
        await session.close()
    assert "TimeoutError" in caplog.text
    assert not environment.freed.is_set()
    environment.gate.set()
    assert environment.freed.wait(20)


async def test_a_setup_that_is_cancelled_in_its_thread_is_closed_when_it_ends(open_session: Open) -> None:
    begun, gate, freed = threading.Event(), threading.Event(), threading.Event()

    class Slow(Threaded):
        def setup(self) -> None:
            begun.set()
            assert gate.wait(20)

        def close(self) -> None:
            freed.set()

    session = open_session(Slow)
    starting = asyncio.create_task(session.setup())
    assert await asyncio.to_thread(begun.wait, 20)
    starting.cancel()
    gate.set()
    await session.close()
    assert freed.is_set()


async def test_threads_that_hang_in_a_tool_or_in_close_count_as_hung_until_they_return(open_session: Open) -> None:
    gate = threading.Event()

    class Stubborn(Threaded):
        @tool
        def wait(self) -> None:
            """Wait."""
            assert gate.wait(20)

        def close(self) -> None:
            assert gate.wait(20)

    with EnvironmentThreads(1) as threads:
        in_tool = open_session(Stubborn, executor=threads, close_timeout_s=0.05)
        await in_tool.setup()
        with anyio.move_on_after(0.05):
            await in_tool.call_tool("wait", "{}")
        await in_tool.close()
        assert threads.hung == 1
        in_close = open_session(Stubborn, executor=threads, close_timeout_s=0.05)
        await in_close.setup()  # by another thread, though there is only one at a time
        await in_close.close()
        assert threads.hung == 2
        gate.set()
        async with asyncio.timeout(20):
            while threads.hung:  # noqa: ASYNC110  a thread has no event for it
                await asyncio.sleep(0.01)
