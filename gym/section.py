"""Base class for a named part of the settings."""

from __future__ import annotations

from pydantic import ConfigDict

from gym.fields.masked import MaskedModel


class Section(MaskedModel):
    """A named part of the settings."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)
