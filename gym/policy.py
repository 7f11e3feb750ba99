"""Where a policy is served, and under which version: the record that a trainer announces."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator


class PolicySpec(BaseModel):
    """A policy under training, as `PUT /v1/policies/{name}` takes it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base_urls: Annotated[list[str], Field(min_length=1, max_length=1024)]
    model: Annotated[str, Field(min_length=1)]
    api_key: str | None = Field(default=None, repr=False)
    api: Literal["chat"] = "chat"
    version: int | None = Field(default=None, description="the integer that the trainer stamps on its weights")
    sampling_overrides: dict[str, Any] = Field(default_factory=dict)
    token_ids: bool = Field(default=True, description="capture token ids and log-probabilities where offered")

    @field_validator("base_urls")
    @classmethod
    def _urls(cls, urls: list[str]) -> list[str]:
        """Absolute http(s) URLs, without the trailing slash; `…/v1` is what clients of OpenAI's API append to."""
        for url in urls:
            scheme, _, rest = url.partition("://")
            if scheme not in ("http", "https") or not rest or any(c.isspace() for c in url):
                shown = url.rpartition("@")[2]  # without the credentials that it may carry
                raise ValueError(f"{shown!r} is not an http:// or https:// URL")
        return [url.rstrip("/") for url in urls]
