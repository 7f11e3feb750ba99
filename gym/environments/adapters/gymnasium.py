"""Adapter for Gymnasium.

An entry of the settings names an environment by its id, and the agent `stepped` plays it in text.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from gym.environments.base import Row, Step, SteppedEnvironment
from gym.environments.codecs import as_text
from gym.errors import BadRow
from gym.jsontypes import JsonObject

HOW = {
    "text": "Think if you like, then end your answer with one action in tags, such as <action>{example}</action>.",
    "tool": "Act by calling `act`.",
}


class GymnasiumOptions(BaseModel):
    """Options of an entry."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(description="as `gymnasium.make` takes it")
    kwargs: dict[str, Any] = Field(default_factory=dict, description="for `gymnasium.make`")
    act: Literal["text", "tool"] = "text"
    actions: tuple[str, ...] = Field(default=(), description="names of the actions of a Discrete space, in its order")
    picture: bool | None = Field(default=None, description="show the `ansi` rendering; left out, where there is one")
    show_reward: bool = False
    instructions: str | None = Field(default=None, description="the system message of generated rows")


class GymnasiumRow(Row):
    """Row with the episode's seed and options."""

    seed: int | None = Field(
        default=None, ge=0, lt=2**63, description="for `reset`; left out, each rollout has its own"
    )
    reset_options: dict[str, Any] | None = Field(default=None, description="for `reset`")


class Gymnasium(SteppedEnvironment[GymnasiumRow]):
    """An environment of Gymnasium, played in text. The reward is the sum of the steps'."""

    name = "gymnasium"
    row_model = GymnasiumRow
    blocking = True
    requires = ("gymnasium",)
    options_model = GymnasiumOptions
    options: ClassVar[Any]  # GymnasiumOptions
    instructions: ClassVar[str]
    names: ClassVar[tuple[str, ...]]
    with_picture: ClassVar[bool]

    @classmethod
    def configured(cls, name: str, options: JsonObject) -> type[Self]:
        """Make the environment once, to read its spaces."""
        from gymnasium import make, spaces

        from gym.environments.adapters.gymnasium_text import (
            ACTION_NAMES,
            GymnasiumText,
            GymnasiumTool,
            actions_said,
            family,
        )

        made = super().configured(name, options)
        given: GymnasiumOptions = made.options
        env = make(given.id, **given.kwargs)
        try:
            space = env.action_space
            sample = space.sample()
            modes = env.metadata.get("render_modes") or ()
        finally:
            env.close()
        count = int(space.n) if isinstance(space, spaces.Discrete) else 0
        made.names = given.actions or (ACTION_NAMES.get(family(given.id), ()) if count else ())
        if made.names and len(made.names) != count:
            raise ValueError(f"actions names {len(made.names)}, and {given.id} acts by {space}")
        made.with_picture = "ansi" in modes if given.picture is None else given.picture
        codec = GymnasiumText if given.act == "text" else GymnasiumTool
        made.codec = codec(space, made.names)
        example = made.names[0] if made.names else _text(space, sample)
        how = HOW[given.act].format(example=example)
        said = actions_said(space, made.names)
        made.instructions = given.instructions or f"You play {given.id}. {said[0].upper()}{said[1:]}. {how}"
        made.__doc__ = f"{given.id} of Gymnasium, played in text."
        return made

    def setup(self) -> None:
        """Make the environment."""
        from gymnasium import make

        kwargs = {"render_mode": "ansi"} if self.with_picture else {}
        self.env = make(self.options.id, **{**kwargs, **self.options.kwargs})

    def reset(self) -> JsonObject:
        """The first observation, as JSON and as text."""
        seed = self.row.seed if self.row.seed is not None else self.seed
        try:
            observation, _ = self.env.reset(seed=seed, options=self.row.reset_options)
        except (KeyError, TypeError, ValueError) as error:
            if self.row.reset_options is None:
                raise
            raise BadRow(f"{self.options.id} does not take these reset_options: {error}") from error
        return self._shown(observation)

    def step(self, action: Any) -> Step:
        """Take an action, given as JSON or by name."""
        from gym.environments.adapters.gymnasium_text import read_action, told

        chosen = read_action(self.env.action_space, self.names, action)
        observation, reward, terminated, truncated, info = self.env.step(chosen)
        shown = self._shown(observation)
        if self.options.show_reward:
            shown["text"] += f"\nReward: {float(reward):g}"
        return Step(
            observation=shown,
            reward=float(reward),
            done=bool(terminated or truncated),
            truncated=bool(truncated and not terminated),
            info=told(info),
        )

    def close(self) -> None:
        """Close the environment."""
        if (env := getattr(self, "env", None)) is not None:
            env.close()

    @classmethod
    def example_row(cls) -> JsonObject:
        """The instructions and a seed."""
        return cls.demo_rows(1, 0)[0]

    @classmethod
    def demo_rows(cls, count: int, seed: int) -> list[JsonObject]:
        """Return rows with `count` consecutive seeds."""
        prompt = [{"role": "system", "content": cls.instructions}]
        return [
            {"responses_create_params": {"input": prompt}, "environment": cls.name, "seed": seed * count + number}
            for number in range(count)
        ]

    def _shown(self, observation: Any) -> JsonObject:
        from gym.environments.adapters.gymnasium_text import DESCRIBED, as_json, family, picture

        value = as_json(self.env.observation_space, observation)
        described = DESCRIBED.get(family(self.options.id))
        parts = [picture(self.env)] if self.with_picture else []
        if described is not None:
            parts.append(described(self.env, observation))
        return {"observation": value, "text": "\n".join(parts or [as_text(value)])}


def _text(space: Any, sample: Any) -> str:
    from gym.environments.adapters.gymnasium_text import as_json

    return as_text(as_json(space, sample))
