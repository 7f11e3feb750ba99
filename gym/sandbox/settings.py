"""The settings of sandboxes: who provides them, how many are kept warm, what may be used in one."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from gym.fields.masked import Argument, MaskedModel
from gym.limits import Seconds
from gym.sandbox.limits import MIB, SandboxLimits

Mib = Annotated[int, Field(ge=1, le=2**20)]


class SandboxSettings(MaskedModel):
    """`auto` takes the first provider that works; one that is named has to work, or no worker starts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    provider: Literal["auto", "bubblewrap", "docker", "none"] = "auto"
    docker_command: Annotated[str, Field(min_length=1, description="Docker's client, or `podman`")] = "docker"
    docker_arguments: Annotated[tuple[Argument, ...], Field(description="given to each `docker run` as they are")] = ()
    image: Annotated[str, Field(description="Docker's; it has python3 and bash")] = "python:3.11-slim"
    warm: Annotated[
        int, Field(ge=0, le=256, description="sandboxes that each worker keeps ready, once one was used")
    ] = 2
    cpu_s: Annotated[Seconds, Field(description="of a call, all its processes together")] = 10.0
    wall_s: Annotated[Seconds, Field(description="of a call")] = 20.0
    memory_mib: Annotated[Mib, Field(description="of a call: all its processes, their files and buffers together")] = (
        512
    )
    work_mib: Annotated[Mib, Field(description="of files in /work, and as much again in /tmp and /dev/shm")] = 64
    files: Annotated[int, Field(ge=64, le=2**24, description="files, directories and links in a sandbox")] = 16_384
    processes: Annotated[int, Field(ge=2, le=4096)] = 32
    output_kib: Annotated[int, Field(ge=1, le=65536, description="of a call's output; more ends the call")] = 64

    def limits(self) -> SandboxLimits:
        """As what runs inside keeps them."""
        return SandboxLimits(
            cpu_s=self.cpu_s,
            wall_s=self.wall_s,
            memory_bytes=self.memory_mib * MIB,
            work_bytes=self.work_mib * MIB,
            file_bytes=max(1, self.work_mib // 2) * MIB,
            processes=self.processes,
            files=self.files,
            output_bytes=self.output_kib * 1024,
        )
