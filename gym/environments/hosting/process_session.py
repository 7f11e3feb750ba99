"""A session whose environment runs in a separate process; the calls and the errors are the same."""

from __future__ import annotations

import logging
from asyncio import timeout
from typing import Any

from gym.environments.base import Step, SteppedEnvironment
from gym.environments.codecs import Codec
from gym.environments.hosting.process_wire import read_answer
from gym.environments.hosting.processes import EnvironmentProcess, EnvironmentProcesses, ProcessGone
from gym.environments.hosting.session import EnvironmentSession
from gym.environments.hosting.threads import EnvironmentThreads
from gym.environments.registry import EnvironmentType
from gym.environments.values import BOUNDS, ValueBounds
from gym.errors import EnvironmentFailed, EnvironmentUnavailable, Stage, VerifierFailed
from gym.jsontypes import JsonObject
from gym.judges.base import Ask
from gym.reward import Reward
from gym.trajectory import ToolCall, Trajectory

CLOSE_MORE_S = 1.0  # for the answer to arrive

logger = logging.getLogger(__name__)


def new_session(
    environment_type: EnvironmentType,
    data: JsonObject,
    *,
    seed: int,
    executor: EnvironmentThreads,
    processes: EnvironmentProcesses,
    bounds: ValueBounds = BOUNDS,
) -> EnvironmentSession:
    """Return a session in this process, or in a separate one if the environment is isolated."""
    if environment_type.isolation == "process":
        return ProcessSession(environment_type, data, seed=seed, executor=executor, processes=processes, bounds=bounds)
    return EnvironmentSession(environment_type, data, seed=seed, executor=executor, bounds=bounds)


class ProcessSession(EnvironmentSession):
    """An instance of an environment in one process of the pool, for the lifetime of the session."""

    def __init__(
        self,
        environment_type: EnvironmentType,
        data: JsonObject,
        *,
        seed: int,
        executor: EnvironmentThreads,
        processes: EnvironmentProcesses,
        close_timeout_s: float = 5.0,
        bounds: ValueBounds = BOUNDS,
    ) -> None:
        super().__init__(
            environment_type, data, seed=seed, executor=executor, close_timeout_s=close_timeout_s, bounds=bounds
        )
        self._processes = processes
        self._process: EnvironmentProcess | None = None

    async def setup(self) -> None:
        """Wait for a process and set up there. Raises as EnvironmentSession does."""
        source = self._type.source
        if self._type.cls is None or source is None:
            raise EnvironmentFailed(f"{self._type.name} cannot be run: {self._type.error}")
        try:
            self._process = await self._processes.take(repr(source))
        except ProcessGone as error:
            raise EnvironmentUnavailable(f"{self._type.name}, setup: {error}") from error
        await self._ask("open", source, self._data, self._seed, self._close_timeout_s, self._bounds)

    async def call_tool(self, name: str, arguments: str) -> ToolCall:
        """Call a tool as EnvironmentSession does; arguments that are too long are not sent."""
        arguments = arguments[: self._bounds.argument_chars + 1]
        called = await self._ask("call_tool", name, arguments)
        if not isinstance(called, ToolCall):
            raise self._nonsense("call_tool", called)
        return called

    async def observe(self) -> Any:
        """Observe as EnvironmentSession does."""
        return await self._ask("observe")

    @property
    def codec(self) -> Codec:
        """The codec of the class, since codecs run in the worker."""
        cls = self._type.cls
        if cls is None or not issubclass(cls, SteppedEnvironment):
            raise EnvironmentFailed(f"{self._type.name} is not stepped; its tools are called by the agent tool_loop")
        return cls.codec

    async def step(self, action: object) -> Step:
        """Step as EnvironmentSession does."""
        step = await self._ask("step", action)
        if not isinstance(step, Step):
            raise self._nonsense("step", step)
        return step

    async def verify(self, trajectory: Trajectory) -> Reward | Ask:
        """Verify as EnvironmentSession does."""
        found = await self._ask("verify", trajectory)
        if not isinstance(found, Reward | Ask):
            raise VerifierFailed(self._nonsense("verify", found).message)
        if isinstance(found, Ask):
            try:
                self._check_ask(found)
            except ValueError as error:
                raise VerifierFailed(f"{self._type.name}, verify: {error}") from error
        return found

    async def close(self) -> None:
        """Close the session there. The process is killed if that takes too long, or if it still works afterwards."""
        if self._closed:
            return
        self._closed = True
        process, clean = self._process, False
        if process is None:
            return
        try:
            async with timeout(self._close_timeout_s + CLOSE_MORE_S):
                clean = (await process.call("close")).get("value") is True
        except ProcessGone as error:
            logger.warning("environment %s, close: %s", self._type.name, error)
        except TimeoutError:
            logger.warning("environment %s, close: it hangs; its process is killed", self._type.name)
        finally:
            self._processes.give_back(process, clean=clean)

    async def _ask(self, what: str, *args: Any) -> object:
        stage = {"open": Stage.SETUP, "observe": Stage.SETUP, "verify": Stage.VERIFY}.get(what, Stage.TOOL)
        self._check_open(stage)  # the process may serve another session by now
        if self._process is None:
            raise RuntimeError("the session has not been set up")
        try:
            answer = await self._process.call(what, *args)
        except (ProcessGone, ValueError) as error:
            text = f"{self._type.name}, {what}: {error}"
            if what == "verify":
                raise VerifierFailed(text) from error
            failed = EnvironmentFailed(text)
            failed.stage = stage
            raise failed from error
        return read_answer(answer)

    def _nonsense(self, what: str, found: object) -> EnvironmentFailed:
        return EnvironmentFailed(f"{self._type.name}, {what}: its process answered with {type(found).__name__}")
