"""The session of an environment for one rollout: set up, tools called, verified, closed.

Invariants. Only tools that the task offers can be called. Any input of a model to a tool leads to an answer that it can
read, never to an exception. Results of an environment are made plain and bounded here (`gym.environments.values`); a
value that cannot be made plain fails the rollout. At most one plain method of an instance runs at a time, also after a
cancellation: a thread cannot be stopped, so the next call and `close` wait for it.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import orjson
from pydantic import ValidationError

from gym.environments.base import Environment, Step, SteppedEnvironment, ToolsOfRows
from gym.environments.codecs import Codec
from gym.environments.hosting.threads import EnvironmentThreads
from gym.environments.registry import EnvironmentType
from gym.environments.tools import BadArguments, ToolSpec, decode_arguments, problems
from gym.environments.values import BOUNDS, ValueBounds, bounded_text, plain_observation, plain_step, tool_output
from gym.errors import BadRow, EnvironmentFailed, RolloutError, Stage, VerifierFailed
from gym.jsontypes import JsonObject
from gym.judges.base import Ask
from gym.plain.values import NotPlain, utf8
from gym.reward import Reward
from gym.trajectory import ToolCall, Trajectory

_ERROR_CHARS = 2000

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Outcome:
    """Result of a call in a thread; a value, since a StopIteration set on a future would never be delivered."""

    value: object
    error: BaseException | None


class EnvironmentSession:
    """An instance of an environment, for one rollout on one event loop; `executor` runs blocking methods."""

    def __init__(
        self,
        environment_type: EnvironmentType,
        data: JsonObject,
        *,
        seed: int,
        executor: EnvironmentThreads,
        close_timeout_s: float = 5.0,
        bounds: ValueBounds = BOUNDS,
        on_fault: Callable[[BaseException], None] | None = None,
    ) -> None:
        """Set `on_fault`, which gets each exception of the environment's code before it is handled, for a debugger."""
        self._type = environment_type
        self._on_fault = on_fault
        self._bounds = bounds
        self._data = data
        self._seed = seed
        self._executor = executor
        self._close_timeout_s = close_timeout_s
        self._environment: Environment[Any] | None = None
        self._thread: Future[_Outcome] | None = None
        self._turn = asyncio.Lock()
        self._closed = False
        params = data.get("responses_create_params")
        given = params.get("tools") if isinstance(params, dict) else None
        self.tools: list[JsonObject] = list(given) if given else [spec.schema for spec in environment_type.tools]
        self._offered = {str(tool.get("name")) for tool in self.tools}

    async def setup(self) -> None:
        """Check the row, make the instance and set it up.

        Raises BadRow if the row does not fit, EnvironmentFailed if the environment raises.
        """
        cls = self._type.cls
        if cls is None:
            raise EnvironmentFailed(f"{self._type.name} cannot be run: {self._type.error}")
        try:
            row = cls.row_model.model_validate(self._data)
        except ValidationError as error:
            field, message = problems(error)[0]
            raise BadRow(f"not a row of {self._type.name}, field `{field}`: {message}") from error
        is_async = inspect.iscoroutinefunction(cls.setup)

        def start() -> object:
            self._environment = cls(row, seed=self._seed)
            return None if is_async else self._environment.setup()

        try:
            await self._run(start, thread=cls.blocking)
            if is_async:
                await self._run(self._ready(Stage.SETUP).setup, thread=False)
        except RolloutError:
            raise
        except (Exception, SystemExit) as error:
            raise EnvironmentFailed(f"{self._type.name}, setup: {_text_of(error)}") from error

    async def call_tool(self, name: str, arguments: str) -> ToolCall:
        """Call a tool as the model asked for it; `arguments` is JSON text.

        Raises EnvironmentFailed (its stage is `tool`) for a result that JSON cannot hold. An EnvironmentFailed or
        another RolloutError that the tool raises ends the rollout. Every other fault is an answer with `failed` set.
        """
        environment = self._ready()
        decoded: JsonObject | None = None
        try:
            decoded = decode_arguments(arguments, most_chars=self._bounds.argument_chars)
            if isinstance(environment, ToolsOfRows) and name in self._offered:
                called: Any = await self._run(functools.partial(environment.call, name, decoded), thread=False)
                return ToolCall(name, decoded, bounded_text(called.output, self._bounds), failed=called.failed)
            spec = self._offered_tool(name)
            call = functools.partial(getattr(environment, spec.name), **spec.read_arguments(arguments))
            result = await self._run(call, thread=environment.blocking and not spec.is_async)
            output = self._output_of(spec.name, result)
        except RolloutError as error:
            if isinstance(error, EnvironmentFailed):
                error.stage = Stage.TOOL
            raise
        except BadArguments as error:
            return _failure(name, decoded, _said(error))
        except (Exception, SystemExit) as error:  # noqa: BLE001  a tool that raises is an answer to the model
            return _failure(name, decoded, _text_of(error))
        return ToolCall(name, decoded, output, failed=False)

    def _output_of(self, tool: str, result: object) -> str:
        try:
            return tool_output(result, self._bounds)
        except NotPlain as error:
            raise EnvironmentFailed(f"{self._type.name}, tool {tool}: {error}") from error

    async def observe(self) -> Any:
        """Return a stepped environment's first observation, or for other environments the task's input.

        Raises EnvironmentFailed.
        """
        environment = self._ready()
        if isinstance(environment, SteppedEnvironment):
            first = await self._stepped(environment, environment.reset, "reset")
            try:
                return plain_observation(first, self._bounds)
            except NotPlain as error:
                raise EnvironmentFailed(f"{self._type.name}, reset: {error}") from error
        return (self._data.get("responses_create_params") or {}).get("input")

    @property
    def codec(self) -> Codec:
        """The codec of a stepped environment, available after `observe`.

        Raises EnvironmentFailed for other environments.
        """
        environment = self._ready()
        if not isinstance(environment, SteppedEnvironment):
            raise EnvironmentFailed(f"{self._type.name} is not stepped; its tools are called by the agent tool_loop")
        return environment.codec

    async def step(self, action: object) -> Step:
        """Take an action in a stepped environment.

        Raises BadArguments if the environment has no steps or the action is not legal, EnvironmentFailed if it raises.
        """
        environment = self._ready()
        if not isinstance(environment, SteppedEnvironment):
            raise BadArguments(f"{self._type.name} is not stepped; call its tools")
        step: Any = await self._stepped(environment, functools.partial(environment.step, action), "step")
        if not isinstance(step, Step):
            raise self._step_failed(f"it returned {type(step).__name__}, not a Step")
        try:
            return plain_step(step, self._bounds)
        except NotPlain as error:
            raise self._step_failed(str(error)) from error

    async def _stepped(self, environment: Environment[Any], call: Callable[[], object], what: str) -> object:
        method = getattr(environment, what)
        try:
            thread = environment.blocking and not inspect.iscoroutinefunction(method)
            return await self._run(call, thread=thread, expected=(ValueError,) if what == "step" else ())
        except RolloutError as error:
            if isinstance(error, EnvironmentFailed) and what == "step":
                error.stage = Stage.TOOL
            raise
        except (Exception, SystemExit) as error:
            if what != "step":
                raise EnvironmentFailed(f"{self._type.name}, {what}: {_text_of(error)}") from error
            if isinstance(error, ValueError) and not isinstance(error, NotPlain):
                raise BadArguments(_said(error) or "that is no action here") from error
            raise self._step_failed(_text_of(error)) from error

    def _step_failed(self, why: str) -> EnvironmentFailed:
        failed = EnvironmentFailed(f"{self._type.name}, step: {why}")
        failed.stage = Stage.TOOL
        return failed

    async def verify(self, trajectory: Trajectory) -> Reward | Ask:
        """Score the episode, or return the questions for judges.

        Raises VerifierFailed, or the RolloutError that the verifier raised.
        """
        environment = self._ready(Stage.VERIFY)
        thread = environment.blocking and not inspect.iscoroutinefunction(environment.verify)
        try:
            result: Any = await self._run(functools.partial(environment.verify, trajectory), thread=thread)
            if isinstance(result, Ask):
                self._check_ask(result)
                return result
            return Reward.of(result)
        except RolloutError as error:
            if isinstance(error, EnvironmentFailed):
                error.stage = Stage.VERIFY
            raise
        except (Exception, SystemExit) as error:
            raise VerifierFailed(f"{self._type.name}, verify: {_text_of(error)}") from error

    async def close(self) -> None:
        """Free the environment's resources, in bounded time, and log its errors. A second call does nothing.

        A thread that still runs after that counts as hung, and closes the environment when it ends.
        """
        if self._closed:
            return
        self._closed = True
        settled = False
        try:
            async with asyncio.timeout(self._close_timeout_s):
                await self._settled()
                settled = True
                if (environment := self._environment) is not None:
                    thread = environment.blocking and not inspect.iscoroutinefunction(environment.close)
                    await self._run(environment.close, thread=thread)
        except (Exception, SystemExit) as error:  # noqa: BLE001  the rollout is over; its result stands
            logger.warning("environment %s, close: %s", self._type.name, _text_of(error))
        finally:
            if self._thread is not None and not self._thread.done():
                self._executor.abandon(self._thread)
            if not settled and self._thread is not None:
                self._thread.add_done_callback(self._close_late)

    def _ready(self, stage: Stage = Stage.TOOL) -> Environment[Any]:
        self._check_open(stage)
        if self._environment is None:
            raise RuntimeError("the session has not been set up")
        return self._environment

    def _check_open(self, stage: Stage) -> None:
        """Raise EnvironmentFailed, with that stage, after `close`."""
        if self._closed:
            failed = EnvironmentFailed(f"{self._type.name}: the session is closed")
            failed.stage = stage
            raise failed

    def _check_ask(self, ask: Ask) -> None:
        """Raise ValueError for a judge that the class does not name, since submission could not check it."""
        named = (self._environment or self._type).judges
        if unknown := {question.judge for question in ask.questions} - set(named):
            raise ValueError(f"it asks {', '.join(sorted(unknown))}, and its `judges` are {', '.join(named) or 'none'}")

    def _offered_tool(self, name: str) -> ToolSpec:
        spec = next((each for each in self._type.tools if each.name == name), None) if name in self._offered else None
        if spec is None:
            offered = ", ".join(sorted(self._offered)) or "none"
            raise BadArguments(f"there is no tool `{name[:80]}` in this task; its tools: {offered}")
        return spec

    async def _run(
        self, call: Callable[[], object], *, thread: bool, expected: tuple[type[Exception], ...] = ()
    ) -> object:
        """Return the result of a method, awaited if need be; cancellation that is not this task's is a fault.

        Exceptions of type `expected` are part of the method's contract and are not reported to `on_fault`.
        """
        try:
            result = await self._in_thread(call) if thread else call()
            return await result if inspect.isawaitable(result) else result
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise RuntimeError("it was cancelled from inside") from error
        except (Exception, SystemExit) as error:
            if self._on_fault is not None and not isinstance(error, (RolloutError, BadArguments, *expected)):
                self._on_fault(error)
            raise

    async def _in_thread(self, call: Callable[[], object]) -> object:
        async with self._turn:
            await self._settled()
            self._thread = self._executor.submit(_outcome_of, call)
            outcome = await asyncio.wrap_future(self._thread)
        if outcome.error is not None:
            raise outcome.error
        return outcome.value

    async def _settled(self) -> None:
        """Wait for a thread that a cancelled call left running."""
        if self._thread is not None and not self._thread.done():
            waiter = asyncio.wrap_future(self._thread)
            try:
                await asyncio.wait({waiter})
            finally:
                waiter.cancel()

    def _close_late(self, _: Future[_Outcome]) -> None:
        environment = self._environment
        if environment is not None and not inspect.iscoroutinefunction(environment.close):
            outcome = _outcome_of(environment.close)
            if outcome.error is not None:
                logger.warning("environment %s, close: %s", self._type.name, _text_of(outcome.error))


def _outcome_of(call: Callable[[], object]) -> _Outcome:
    try:
        return _Outcome(call(), None)
    except BaseException as error:  # noqa: BLE001  carried to the event loop, which raises it
        return _Outcome(None, error)


def _failure(name: str, arguments: JsonObject | None, message: str) -> ToolCall:
    return ToolCall(name, arguments, orjson.dumps({"error": utf8(_short(message))}).decode(), failed=True)


def _text_of(error: BaseException) -> str:
    return _short(f"{type(error).__name__}: {_said(error)}")


def _said(error: BaseException) -> str:
    """Return an exception's text, cut, or an empty text if its `__str__` raises."""
    try:
        return str(error)[: _ERROR_CHARS + 1]
    except Exception:  # noqa: BLE001  the exception is the environment's
        return ""


def _short(text: str) -> str:
    return text if len(text) <= _ERROR_CHARS else f"{text[:_ERROR_CHARS]}…"
