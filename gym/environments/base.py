"""What an environment is: a class with a row model, tools as typed methods, and `verify`.

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
    """The base of row models: fields of the row beside the farm's own; unknown ones are kept, not refused."""

    model_config = ConfigDict(extra="allow")


class NoOptions(BaseModel):
    """The options of an environment that takes none."""

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
    """What an action led to, as JSON can hold it; `reward` is that of the step, `done` ends the episode.

    `truncated` comes with `done`: the episode ended by a limit of the environment, not by what it is about.
    """

    observation: Any
    reward: float = 0.0
    done: bool = False
    truncated: bool = False
    info: JsonObject = field(default_factory=dict)

    def taken(self, action: Any, *, turn: int) -> StepTaken:
        """As the trajectory keeps it."""
        return StepTaken(turn=turn, action=action, reward=float(self.reward), done=self.done, truncated=self.truncated)


class Environment(ABC, Generic[RowT]):
    """One task's tools, state and verifier. `row` is the checked row, `seed` differs between a group's samples."""

    name: ClassVar[str]
    row_model: ClassVar[type[Row]] = Row
    agent: ClassVar[str] = "tool_loop"  # the agent for rows that name none
    blocking: ClassVar[bool] = False  # plain methods run in a thread, one at a time for each instance
    isolation: ClassVar[Isolation] = "worker"  # unless the settings say otherwise
    apart: ClassVar[bool] = False  # its work is done in a sandbox, process or server already
    requires: ClassVar[tuple[str, ...]] = ()  # packages it imports late; where one is missing it is disabled
    judges: ClassVar[tuple[str, ...]] = ()  # judges that `verify` may ask, by their names in the settings
    options_model: ClassVar[type[BaseModel]] = NoOptions  # what the settings may give beside `use` or `adapter`
    options: ClassVar[Any] = NoOptions()  # what they gave

    def __init__(self, row: RowT, *, seed: int) -> None:
        self.row = row
        self.seed = seed

    @classmethod
    def configured(cls, name: str, options: JsonObject) -> type[Self]:
        """The environment under a name and with options of the settings: a subclass, made when the farm starts.

        What depends on the options, such as tools or a codec, an override sets on the subclass. Raises ValueError or
        TypeError where the options cannot be used, which disables this one environment.
        """
        attributes = {"name": name, "options": cls.options_model.model_validate(options), "__doc__": cls.__doc__}
        return type(cls.__name__, (cls,), {**attributes, "__module__": cls.__module__})

    @classmethod
    def check_machine(cls, sandbox: SandboxSettings) -> None:  # noqa: ARG003  for those that override it
        """Raise where this machine lacks what it needs; it is then disabled, with that reason."""
        return

    def setup(self) -> Awaitable[None] | None:
        """Get ready; a raise here fails the rollout as `environment_error`."""
        return None

    @abstractmethod
    def verify(self, trajectory: Trajectory) -> Awaitable[Reward | Ask | float] | Reward | Ask | float:
        """Score the episode; a raise here fails the rollout as `verifier_error`, it never becomes a 0.

        Where judges decide it returns an `Ask`, and `judged` scores. The instance is gone by then.
        """

    @classmethod
    def judged(cls, ask: Ask, verdicts: Sequence[Verdict]) -> Reward | float:
        """The reward, from a verdict for each question in order; for most environments the one verdict's score.

        Runs in another process, perhaps much later and again with another judge: everything it needs is in `ask`.
        """
        if len(verdicts) != 1:
            raise NotImplementedError(f"{cls.__qualname__} asks {len(ask.questions)} questions and has no `judged`")
        return Reward(verdicts[0].score, {verdicts[0].judge: verdicts[0].score})

    def close(self) -> Awaitable[None] | None:
        """Free what `setup` took; called once, also after a failure or cancellation."""
        return None

    @classmethod
    @abstractmethod
    def example_row(cls) -> JsonObject:
        """A row that runs as it is."""

    @classmethod
    def demo_rows(cls, count: int, seed: int) -> list[JsonObject]:  # noqa: ARG003  for those that override it
        """Varied rows that run as they are, for the demo and the benchmark; the same for the same seed."""
        return [copy.deepcopy(cls.example_row()) for _ in range(count)]

    @classmethod
    def description(cls) -> str:
        """The class's docstring, first line."""
        return (inspect.getdoc(cls) or cls.name).splitlines()[0]


class ToolsOfRows(Environment[RowT]):
    """An environment whose tools are no methods: each row says in `responses_create_params.tools` which there are."""

    @abstractmethod
    def call(self, name: str, arguments: JsonObject) -> Awaitable[ToolCall]:
        """Call a tool that the row offers. What it raises is told to the model, but for a RolloutError."""


class SteppedEnvironment(Environment[RowT]):
    """An environment that is stepped, in the manner of Gymnasium: an action in, an observation out.

    In a batch the agent `stepped` plays it: the codec says how a model reads an observation and how it acts.
    """

    agent: ClassVar[str] = "stepped"
    codec: Codec = TextCodec()  # an instance may have one of its own from `reset` on

    @abstractmethod
    def reset(self) -> Awaitable[Any] | Any:
        """The first observation, or None where the task's input says all; called once, after `setup`."""

    @abstractmethod
    def step(self, action: Any) -> Awaitable[Step] | Step:
        """Act. ValueError says that the action is none, and is told to whoever acts."""

    def verify(self, trajectory: Trajectory) -> Awaitable[Reward | Ask | float] | Reward | Ask | float:
        """The sum of the steps' rewards."""
        return Reward(float(sum(step.reward for step in trajectory.steps)), {"steps": float(len(trajectory.steps))})
