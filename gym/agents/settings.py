"""Settings of agents outside the farm: the address of a service, or the program to start.

Invariant: they come from settings alone. A row or a batch only names an agent, so no submission can start a program or
have the farm call an address.
"""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field, field_validator

from gym.fields.bounded import HeaderText
from gym.fields.masked import Address, Argument, MaskedModel, Secret, mask_address
from gym.limits import Seconds

AbsolutePath = Annotated[str, Field(pattern=r"^/[^:]+$")]
VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class _AgentSettings(MaskedModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RemoteSettings(_AgentSettings):
    """An agent that is a service with `POST {url}/v1/responses`."""

    kind: Literal["remote"]
    url: Address
    api_key: HeaderText | None = Field(
        default=None, repr=False, description="sent to the service as `Authorization: Bearer`"
    )
    timeout_s: Annotated[Seconds, Field(description="of one call of the service")] = 600.0
    connect_timeout_s: Seconds = 5.0
    max_retries: Annotated[int, Field(ge=0, le=20, description="where no connection comes about, or 502, 503, 429")] = 3

    @field_validator("url")
    @classmethod
    def _absolute(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
            raise ValueError(f"{mask_address(url[:100])!r} is not an http(s) address without a query")
        if parts.username or parts.password:
            raise ValueError("the url holds a password; give it as `api_key`")
        return url.rstrip("/")


class CommandSettings(_AgentSettings):
    """An agent that is a program, started for each rollout.

    In `argv` and `environment`, `{prompt}`, `{prompt_file}`, `{task_file}`, `{base_url}`, `{model}`, `{rollout_id}` and
    `{directory}` are replaced; no shell is involved.
    """

    kind: Literal["command"]
    argv: Annotated[tuple[Argument, ...], Field(min_length=1)]
    environment: dict[VariableName, Secret] = Field(default_factory=dict, description="more variables for the program")
    stdin: Literal["prompt", "task", "none"] = "prompt"
    answer: Annotated[
        Literal["model", "stdout"], Field(description="what is scored: the model's last message, or what was printed")
    ] = "model"
    timeout_s: Annotated[Seconds | None, Field(description="left out, the rollout's own")] = None
    output_kib: Annotated[int, Field(ge=1, le=65536, description="of its output that is kept")] = 256
    sandbox: Annotated[bool, Field(description="whether it runs in one, with no network but the model proxy")] = False
    readable: Annotated[tuple[AbsolutePath, ...], Field(description="what it may read there, at the same paths")] = ()
    memory_mib: Annotated[int, Field(ge=64, le=2**20, description="in a sandbox")] = 2048
    work_mib: Annotated[int, Field(ge=1, le=2**20, description="of files, in a sandbox")] = 256
    processes: Annotated[int, Field(ge=8, le=4096, description="and threads, in a sandbox")] = 128


AgentSettings = Annotated[RemoteSettings | CommandSettings, Field(discriminator="kind")]
