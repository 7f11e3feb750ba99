"""Entries of environments in the settings: a class as it is, or a class or adapter with a name and options.

    environments:
      - my_package.coin:Coin                        # a class, under its own name
    environments:
      coin: my_package.coin:Coin                    # the same, in a mapping from names
      frozen_lake: {adapter: gymnasium, id: FrozenLake-v1}
      long_coin: {use: "my_package.coin:Coin", throws: 100}
      heavy_coin: {use: "my_package.coin:Coin", isolation: process}

What else stands beside `adapter` or `use` are its options, which the class's `options_model` checks when it is loaded.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from gym.fields.masked import MaskedModel
from gym.ids import ID_CHARS, ID_PATTERN
from gym.jsontypes import JsonObject


class EnvironmentEntry(MaskedModel):
    """An environment with its own name and options."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: Annotated[str, Field(pattern=ID_PATTERN, max_length=ID_CHARS)]
    adapter: str | None = Field(default=None, description="what brings it here: gymnasium, verifiers, …")
    use: str | None = Field(default=None, description="`package.module:Class` or `path/to/file.py:Class`")

    isolation: Isolation | None = Field(
        default=None, description="`process`: in a process of its own, not the worker's"
    )

    @model_validator(mode="after")
    def _one_source(self) -> EnvironmentEntry:
        if (self.adapter is None) == (self.use is None):
            raise ValueError("give either `adapter` or `use`, and beside it the options")
        return self

    @property
    def options(self) -> JsonObject:
        """The fields beside the farm's own."""
        return dict(self.model_extra or {})


def _listed(given: Any) -> Any:
    """Convert a mapping from names to the equivalent list."""
    if not isinstance(given, dict):
        return given
    entries = []
    for name, entry in given.items():
        if not isinstance(entry, str | dict):
            kind = type(entry).__name__
            raise ValueError(f"{name} is {kind}; give `package.module:Class` or an object with `adapter` or `use`")  # noqa: TRY004  pydantic reports ValueErrors
        entries.append({"name": name, "use": entry} if isinstance(entry, str) else {**entry, "name": name})
    return entries


EnvironmentEntries = Annotated[tuple[str | EnvironmentEntry, ...], BeforeValidator(_listed)]


Isolation = Literal["worker", "process"]
"""Where an environment's methods run: in the worker's process, or in one of its own."""
