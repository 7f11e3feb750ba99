"""The base of environments: a class with a row model, tools as typed methods, and `verify`.

An instance serves one rollout and is thrown away, so its state cannot leak. Methods may be plain or `async def`;
plain ones run in a thread when `blocking` is true, else directly on the worker's event loop.

    class Coin(Environment[CoinRow]):
        \"\"\"Guess the side of a coin.\"\"\"
        name = "coin"
        row_model = CoinRow

        @tool
        def flip(self) -> str:
            \"\"\"Flip the coin and say how it fell.\"\"\"
            ...

        def verify(self, trajectory: Trajectory) -> float:
            return 1.0 if self.row.side in trajectory.final_text else 0.0
"""

from __future__ import annotations

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Self, TypeVar

from pydantic import BaseModel, ConfigDict

from gym.environments.codecs import Codec, TextCodec
from gym.environments.settings import Isolation
from gym.jsontypes import JsonObject
from gym.judges.base import Ask, Verdict
from gym.reward import Reward
from gym.sandbox.settings import SandboxSettings
from gym.trajectory import StepTaken, ToolCall, Trajectory


class Row(BaseModel):
    """Base of row models: the row's fields beside the farm's own; unknown fields are kept, not refused."""

    model_config = ConfigDict(extra="allow")


class NoOptions(BaseModel):
    """Options of an environment that takes none."""

    model_config = ConfigDict(extra="forbid", frozen=True)


RowT = TypeVar("RowT", bound=Row)
Method = TypeVar("Method", bound=Callable[..., Any])

TOOL_MARK = "_farm_tool"


def tool(method: Method) -> Method:
    """Offer a method to the model: its name, docstring and typed parameters become the tool's schema."""
    setattr(method, TOOL_MARK, True)
    return method


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Result of an action, as JSON can hold it; `reward` is that of the step, `done` ends the episode.

    `truncated` comes with `done`: the episode ended by a limit of the environment, not by reaching its end.
    """

    observation: Any
    reward: float = 0.0
    done: bool = False
    truncated: bool = False
    info: JsonObject = field(default_factory=dict)

    def taken(self, action: Any, *, turn: int) -> StepTaken:
        """Return the step as the trajectory keeps it."""
        return StepTaken(turn=turn, action=action, reward=float(self.reward), done=self.done, truncated=self.truncated)


class Environment(ABC, Generic[RowT]):
    """Tools, state and verifier of one task. `row` is the checked row, `seed` differs between a group's samples."""

    name: ClassVar[str]
    row_model: ClassVar[type[Row]] = Row
    agent: ClassVar[str] = "tool_loop"  # the agent for rows that name none
    blocking: ClassVar[bool] = False  # plain methods run in a thread, one at a time for each instance
    isolation: ClassVar[Isolation] = "worker"  # unless the settings say otherwise
    apart: ClassVar[bool] = False  # its work runs in a sandbox, process or server already
    requires: ClassVar[tuple[str, ...]] = ()  # packages it imports late; a missing one disables it
    judges: ClassVar[tuple[str, ...]] = ()  # judges that `verify` may ask, by their names in the settings
    options_model: ClassVar[type[BaseModel]] = NoOptions  # options that the settings may give beside `use` or `adapter`
    options: ClassVar[Any] = NoOptions()  # options that they gave

    def __init__(self, row: RowT, *, seed: int) -> None:
        self.row = row
        self.seed = seed

    @classmethod
    def configured(cls, name: str, options: JsonObject) -> type[Self]:
        """Return the environment under a name and with options of the settings: a subclass, made when the farm starts.

        An override sets everything that depends on the options, such as tools or a codec, on the subclass. Raises
        ValueError or TypeError for unusable options, which disables this one environment.
        """
        attributes = {"name": name, "options": cls.options_model.model_validate(options), "__doc__": cls.__doc__}
        return type(cls.__name__, (cls,), {**attributes, "__module__": cls.__module__})

    @classmethod
    def check_machine(cls, sandbox: SandboxSettings) -> None:  # noqa: ARG003  for those that override it
        """Raise if this machine lacks a requirement; the environment is then disabled, with the error as its reason."""
        return

    def setup(self) -> Awaitable[None] | None:
        """Set the instance up; an exception here fails the rollout as `environment_error`."""
        return None

    @abstractmethod
    def verify(self, trajectory: Trajectory) -> Awaitable[Reward | Ask | float] | Reward | Ask | float:
        """Score the episode; an exception here fails the rollout as `verifier_error`, it never becomes a 0.

        If judges decide, it returns an `Ask`, and `judged` scores. The instance is gone by then.
        """

    @classmethod
    def judged(cls, ask: Ask, verdicts: Sequence[Verdict]) -> Reward | float:
        """Return the reward for the verdicts, one for each question in order; by default the score of the only verdict.

        Runs in another process, perhaps much later and again with another judge: everything it needs is in `ask`.
        """
        if len(verdicts) != 1:
            raise NotImplementedError(f"{cls.__qualname__} asks {len(ask.questions)} questions and has no `judged`")
        return Reward(verdicts[0].score, {verdicts[0].judge: verdicts[0].score})

    def close(self) -> Awaitable[None] | None:
        """Free the resources of `setup`; called once, also after a failure or cancellation."""
        return None

    @classmethod
    @abstractmethod
    def example_row(cls) -> JsonObject:
        """Return a row that runs without changes."""

    @classmethod
    def demo_rows(cls, count: int, seed: int) -> list[JsonObject]:  # noqa: ARG003  for those that override it
        """Return varied rows that run without changes, for the demo and the benchmark; equal for equal seeds."""
        return [copy.deepcopy(cls.example_row()) for _ in range(count)]

    @classmethod
    def description(cls) -> str:
        """Return the first line of the class's docstring."""
        return (inspect.getdoc(cls) or cls.name).splitlines()[0]


class ToolsOfRows(Environment[RowT]):
    """Environment whose tools are not methods: each row lists its tools in `responses_create_params.tools`."""

    @abstractmethod
    def call(self, name: str, arguments: JsonObject) -> Awaitable[ToolCall]:
        """Call a tool that the row offers. The model is shown any exception except a RolloutError."""


class SteppedEnvironment(Environment[RowT]):
    """Environment with steps, in the manner of Gymnasium: an action in, an observation out.

    In a batch the agent `stepped` plays it: the codec converts observations to text and answers to actions.
    """

    agent: ClassVar[str] = "stepped"
    codec: Codec = TextCodec()  # an instance may set another in `reset`

    @abstractmethod
    def reset(self) -> Awaitable[Any] | Any:
        """Return the first observation, or None if the task's input says all; called once, after `setup`."""

    @abstractmethod
    def step(self, action: Any) -> Awaitable[Step] | Step:
        """Apply an action. Raise ValueError if it is not legal; the message is shown to the model."""

    def verify(self, trajectory: Trajectory) -> Awaitable[Reward | Ask | float] | Reward | Ask | float:
        """Return the sum of the steps' rewards."""
        return Reward(float(sum(step.reward for step in trajectory.steps)), {"steps": float(len(trajectory.steps))})
