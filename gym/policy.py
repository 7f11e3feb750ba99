"""Specification of a policy: endpoints, model, version and token options, as a trainer registers it."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, ValidationInfo, field_validator, model_validator

from gym.fields.bounded import URL_CHARS, Free, HeaderText, IsBoolean, IsNumber
from gym.fields.masked import Address, MaskedModel, mask_address

# parsers of `gym.wire.parsers`, by vLLM's names
TOOL_PARSERS = frozenset(
    {"hermes", "llama3_json", "llama4_json", "llama4_pythonic", "pythonic", "qwen3_coder", "qwen3_json", "qwen3_xml"}
)
REASONING_PARSERS = frozenset({"deepseek_r1", "qwen3"})

URLS_CHARS = 128 * 1024
Version = Annotated[int, Field(ge=-(2**53), le=2**53, description="as exact as JSON's numbers are everywhere")]


class PolicySpec(MaskedModel):
    """A policy under training, as `PUT /v1/policies/{name}` takes it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base_urls: Annotated[list[Annotated[Address, Field(max_length=URL_CHARS)]], Field(min_length=1, max_length=1024)]
    model: Annotated[str, Field(min_length=1, max_length=1024)]
    api_key: HeaderText | None = Field(default=None, repr=False)
    api: Literal["chat", "tokens", "responses"] = Field(
        default="chat",
        description="`responses`: Responses calls go to the server's own /v1/responses as they are, all others to "
        "/v1/chat/completions; token ids only where that gives them. "
        "`tokens`: prompts are made of the exact tokens of the turns before; needs a vLLM with "
        "--enable-scale-out. Streamed token by token where no parser reads the answer (no tools offered, no reasoning "
        "parser), else in one piece at its end",
    )
    tool_parser: str | None = Field(
        default=None, description="with `api: tokens`: reads calls, by the name that vLLM's --tool-call-parser has"
    )
    reasoning_parser: str | None = Field(
        default=None, description="with `api: tokens`: reads reasoning, by the name that vLLM's --reasoning-parser has"
    )
    version: Annotated[Version | None, IsNumber] = Field(
        default=None, description="the integer that the trainer stamps on its weights"
    )
    sampling_overrides: Free = Field(default_factory=dict, description="at most 64 KiB as JSON")
    token_ids: Annotated[bool, IsBoolean] = Field(
        default=True, description="capture token ids and log-probabilities where offered"
    )
    max_concurrency: Annotated[int, Field(ge=1, le=65536), IsNumber] | None = Field(
        default=None,
        description="the most calls in flight at one endpoint from one process (each worker, each proxy); further ones "
        "wait in the order in which they came, until their deadline. null: no limit",
    )
    required_prefix: Annotated[bool | None, IsBoolean] = Field(
        default=None,
        description="with `api: chat`: a later turn names the exact tokens that its prompt must begin with "
        "(`required_prefix_token_ids`, as NeMo RL's server takes it). null: until an endpoint is seen to refuse or to "
        "ignore it; false: never; true: unless it is refused",
    )

    @field_validator("base_urls")
    @classmethod
    def _urls(cls, urls: list[str]) -> list[str]:
        """Require absolute http(s) URLs and drop a trailing slash; OpenAI clients append paths to `…/v1`."""
        for url in urls:
            scheme, _, rest = url.partition("://")
            if scheme not in ("http", "https") or not rest or any(c.isspace() for c in url):
                raise ValueError(f"{mask_address(url)!r} is not an http:// or https:// URL")
        if sum(map(len, urls)) > URLS_CHARS:
            raise ValueError(f"the URLs have more than {URLS_CHARS} characters together")
        return [url.rstrip("/") for url in urls]

    @field_validator("tool_parser", "reasoning_parser")
    @classmethod
    def _parser(cls, name: str | None, info: ValidationInfo) -> str | None:
        known = TOOL_PARSERS if info.field_name == "tool_parser" else REASONING_PARSERS
        if name is not None and name not in known:
            raise ValueError(f"there is no parser {name!r} here; there are {', '.join(sorted(known))}")
        return name

    @model_validator(mode="after")
    def _tokens(self) -> Self:
        """Check the options of `api: tokens`: there the farm parses and needs token ids, elsewhere the server."""
        if self.api != "tokens" and (self.tool_parser or self.reasoning_parser):
            raise ValueError("`tool_parser` and `reasoning_parser` are for `api: tokens`; other servers have their own")
        if self.api == "tokens" and not self.token_ids:
            raise ValueError("`api: tokens` works with token ids only: leave `token_ids` true")
        if self.required_prefix and (self.api != "chat" or not self.token_ids):
            raise ValueError("`required_prefix` is for `api: chat` with `token_ids`")
        return self
