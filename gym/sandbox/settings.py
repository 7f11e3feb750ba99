"""The settings of sandboxes: who provides them, how many are kept warm, what may be used in one."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from gym.limits import Seconds
from gym.masking import MaskedModel
from gym.sandbox.limits import MIB, Limits

Mib = Annotated[int, Field(ge=1, le=2**20)]


class SandboxSettings(MaskedModel):
    """`auto` takes the first provider that works; one that is named has to work, or no worker starts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    provider: Literal["auto", "bubblewrap", "docker", "none"] = "auto"
    image: Annotated[str, Field(description="Docker's; it has python3 and bash")] = "python:3.11-slim"
    warm: Annotated[
        int, Field(ge=0, le=256, description="sandboxes that each worker keeps ready, once one was used")
    ] = 2
    cpu_s: Annotated[Seconds, Field(description="of a call, all its processes together")] = 10.0
    wall_s: Annotated[Seconds, Field(description="of a call")] = 20.0
    memory_mib: Annotated[Mib, Field(description="of a call, all its processes together")] = 512
    work_mib: Annotated[Mib, Field(description="of files in /work, and as much again in /tmp")] = 64
    processes: Annotated[int, Field(ge=2, le=4096)] = 32
    output_kib: Annotated[int, Field(ge=1, le=65536, description="of a call's output; more ends the call")] = 64

    def limits(self) -> Limits:
        """As what runs inside keeps them."""
        return Limits(
            cpu_s=self.cpu_s,
            wall_s=self.wall_s,
            memory_bytes=self.memory_mib * MIB,
            work_bytes=self.work_mib * MIB,
            file_bytes=max(1, self.work_mib // 2) * MIB,
            processes=self.processes,
            output_bytes=self.output_kib * 1024,
        )
