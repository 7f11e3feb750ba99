"""OpenEnv servers as environments: one WebSocket for each rollout, played by the agent `stepped`.

    environments:
      echo: {adapter: openenv, urls: ["http://10.0.0.7:8000"], field: message, show: echoed_message}

With `field` the model's <action> is that field of OpenEnv's action; without it the action is a JSON object. With
`act: tool` the model calls a function whose arguments are the action.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator
from yarl import URL

from gym.environments.adapters.openenv_socket import OpenEnvSocket, ServerError, SocketTimeouts, begin
from gym.environments.base import Row, Step, SteppedEnvironment
from gym.environments.codecs import TextCodec, ToolCodec
from gym.errors import EnvironmentFailed, EnvironmentUnavailable, Stage
from gym.fields.masked import mask_address
from gym.jsontypes import JsonObject
from gym.limits import Seconds
from gym.plain import exact_json
from gym.reward import Reward
from gym.trajectory import Trajectory

_PASSING = frozenset({"FACTORY_ERROR", "SESSION_ERROR"})


class OpenEnvOptions(BaseModel):
    """Options of an entry."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    urls: Annotated[tuple[str, ...], Field(min_length=1, description="the servers, as http://host:port")]
    act: Literal["text", "tool"] = "text"
    field: str | None = Field(default=None, description="of the action, that the model's text becomes")
    show: str | None = Field(default=None, description="the field of observations that is shown; left out, all")
    action_schema: JsonObject = Field(
        default={"type": "object"}, description="with `act: tool`, the function's parameters; `GET /schema` tells them"
    )
    description: str = Field(default="Act in the environment.", description="with `act: tool`, the function's")
    reward: Literal["sum", "last"] = Field(default="sum", description="of the steps' rewards")
    execution_errors: Literal["fail", "tell"] = Field(
        default="fail", description="whether a step that raises ends the rollout, or is told to the model"
    )
    connect_timeout_s: Seconds = 5.0
    capacity_timeout_s: Annotated[Seconds, Field(description="for a server that is full to get free")] = 60.0
    reset_timeout_s: Seconds = 60.0
    step_timeout_s: Seconds = 60.0
    ping_s: Annotated[Seconds, Field(description="between pings; a dead connection is found half a time later")] = 10.0

    @field_validator("urls")
    @classmethod
    def _plain(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        for text in urls:
            url = URL(text)
            if url.scheme not in ("http", "https") or not url.host:
                raise ValueError(f"{mask_address(text)!r} is not http://host:port")
            if url.user or url.password or url.query_string:
                raise ValueError("a server's URL has neither user, password nor query")
        return urls

    @property
    def waits(self) -> SocketTimeouts:
        """Return these values as the socket takes them."""
        return SocketTimeouts(
            connect_s=self.connect_timeout_s,
            capacity_s=self.capacity_timeout_s,
            reset_s=self.reset_timeout_s,
            call_s=self.step_timeout_s,
            ping_s=self.ping_s,
        )


class OpenEnvRow(Row):
    """Row with the arguments of the episode's reset."""

    seed: int | None = Field(default=None, ge=0, description="for `reset`; left out, each rollout has its own")
    reset_options: dict[str, Any] | None = Field(default=None, description="what else `reset` is given")


class ActionText(TextCodec):
    """Codec for actions as text: one field of them, or a JSON object."""

    def __init__(self, field: str | None) -> None:
        self._field = field

    def action_of(self, text: str) -> JsonObject:
        """Return OpenEnv's action."""
        if self._field is not None:
            return {self._field: text}
        try:
            action = exact_json.loads(text)
        except ValueError as error:
            raise ValueError(f"an action is a JSON object, and this is not JSON: {error}") from None
        if not isinstance(action, dict):
            raise ValueError(f"an action is a JSON object, not {type(action).__name__}")  # noqa: TRY004  the codec's
        return action


class OpenEnv(SteppedEnvironment[OpenEnvRow]):
    """An environment on an OpenEnv server. The reward is the sum of the steps', or the last one."""

    name = "openenv"
    apart = True
    row_model = OpenEnvRow
    requires = ("aiohttp",)
    options_model = OpenEnvOptions
    options: ClassVar[Any]  # OpenEnvOptions

    _socket: OpenEnvSocket | None = None
    _first: JsonObject

    @classmethod
    def configured(cls, name: str, options: JsonObject) -> type[Self]:
        """Return a subclass with its own codec."""
        made = super().configured(name, options)
        given: OpenEnvOptions = made.options
        function: JsonObject = {
            "type": "function",
            "name": "act",
            "description": given.description,
            "parameters": given.action_schema,
        }
        made.codec = ToolCodec(function) if given.act == "tool" else ActionText(given.field)
        return made

    async def setup(self) -> None:
        """Connect and reset; waits while the servers are full. Raises EnvironmentFailed, EnvironmentUnavailable."""
        seed = self.row.seed if self.row.seed is not None else self.seed
        urls = [URL(url) for url in self.options.urls]
        try:
            self._socket, self._first = await begin(
                urls, {"seed": seed, **(self.row.reset_options or {})}, self.options.waits
            )
        except ServerError as error:
            if error.code in _PASSING:
                raise EnvironmentUnavailable(f"reset: {error}") from error
            raise EnvironmentFailed(f"reset: {error}") from error

    def reset(self) -> Any:
        """Return the observation of the reset."""
        return self._shown(self._first)

    async def step(self, action: Any) -> Step:
        """Take an action.

        Raises ValueError with the error of OpenEnv's action model, EnvironmentFailed, EnvironmentUnavailable.
        """
        if not isinstance(action, dict):
            raise ValueError(f"an action is an object, not {type(action).__name__}")  # noqa: TRY004  the base class's
        try:
            found = await self._ask("step", action)
        except ServerError as error:
            if error.code == "VALIDATION_ERROR" or (
                error.code == "EXECUTION_ERROR" and self.options.execution_errors == "tell"
            ):
                raise ValueError(error.message) from error
            failed = EnvironmentFailed(f"step: {error}")
            failed.stage = Stage.TOOL
            raise failed from error
        reward = found.get("reward")
        return Step(
            observation=self._shown(found),
            reward=0.0 if reward is None else reward,
            done=found.get("done") is True,
        )

    async def state(self) -> JsonObject:
        """Return the server's state of the episode. Raises ServerError, EnvironmentUnavailable."""
        return await self._ask("state")

    async def verify(self, trajectory: Trajectory) -> Reward:
        """Score by the steps' rewards; the numbers of the server's state are components, if it reports one."""
        rewards = [step.reward for step in trajectory.steps]
        value = math.fsum(rewards) if self.options.reward == "sum" else (rewards or [0.0])[-1]
        components = {"steps": float(len(rewards))}
        try:
            state = await self.state()
        except (ServerError, EnvironmentUnavailable):
            state = {}  # all steps were recorded
        for name, number in state.items():
            if isinstance(number, int | float) and math.isfinite(number):
                components[f"state_{name}"] = float(number)
        return Reward(value, components)

    async def close(self) -> None:
        """Close the socket, and with it the server's session."""
        if self._socket is not None:
            await self._socket.close()

    async def _ask(self, kind: str, data: JsonObject | None = None) -> JsonObject:
        if self._socket is None:
            raise RuntimeError("setup comes first")
        try:
            return await self._socket.ask(kind, data, within_s=self.options.step_timeout_s)
        except EnvironmentUnavailable as error:
            error.stage = Stage.TOOL
            raise

    def _shown(self, found: JsonObject) -> Any:
        observation = found.get("observation")
        if self.options.show is not None and isinstance(observation, dict):
            return observation.get(self.options.show)
        return observation

    @classmethod
    def example_row(cls) -> JsonObject:
        """Return a row with the task's text; reset arguments are optional."""
        return {
            "responses_create_params": {"input": [{"role": "user", "content": "Play until it is over."}]},
            "seed": 0,
        }
