"""Settings section `pool`: the judges that Ray places, the cluster and the resources.

pool:
  ray_head_node_address: 10.0.0.5:6379      # left out: the farm starts Ray itself
  judges:
    equality: {num_gpus: 2, max_replicas: 4}  # `vllm serve` over two GPUs, between one and four of them
    similarity: {num_cpus: 1}
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, model_validator

from gym.fields.masked import Argument, MaskedModel, Secret
from gym.judges.settings import JudgeName
from gym.limits import Seconds

Amount = Annotated[float, Field(ge=0, le=10_000)]


class PooledJudge(MaskedModel):
    """Settings of a judge's replicas. Amounts are per replica."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_cpus: Amount = 0.1
    num_gpus: Annotated[Amount, Field(description="a fraction shares a GPU; above 1, tensor parallel over so many")] = 0
    resources: dict[str, Amount] = Field(
        default_factory=dict, description="custom resources of the cluster, such as {extra_gpu: 1}"
    )
    min_replicas: Annotated[int, Field(ge=0, le=1024)] = 1
    max_replicas: Annotated[int, Field(ge=1, le=1024)] = 1
    target_load: Annotated[float, Field(gt=0, description="calls and waiting rollouts per replica")] = 64.0
    scale_down_after_s: Seconds = 120.0
    command: tuple[Argument, ...] = Field(
        default=(), description="replaces the kind's command; {host} and {port} are filled in"
    )
    args: tuple[Argument, ...] = Field(default=(), description="appended to the kind's command")
    python: Path | None = Field(default=None, description="the interpreter of the environment that serves this judge")
    environment: dict[str, Secret] = Field(default_factory=dict, repr=False)
    capacity: Annotated[int, Field(ge=1)] = 1024
    ready_timeout_s: Seconds = 900.0
    drain_s: Seconds = 60.0
    max_restarts: Annotated[int, Field(ge=0, description="within restart_window_s")] = 5
    restart_window_s: Seconds = 600.0

    @model_validator(mode="after")
    def _bounds(self) -> PooledJudge:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas is {self.min_replicas}, over max_replicas {self.max_replicas}")
        if self.num_gpus > 1 and self.num_gpus != int(self.num_gpus):
            raise ValueError(f"num_gpus is {self.num_gpus:g}; above 1 it is a whole number")
        return self


class PoolSettings(MaskedModel):
    """Settings of the judge pool."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ray_head_node_address: str | None = Field(
        default=None, description="HOST:PORT of a Ray head's GCS; if left out, the farm starts Ray for the judges alone"
    )
    python: Path | None = Field(default=None, description="the interpreter that has the cluster's Ray and Python")
    namespace: str = "rollout-farm"
    host: str = Field(default="127.0.0.1", description="address that replicas listen on; 0.0.0.0 for several nodes")
    temp_dir: Path | None = Field(default=None, description="of a Ray that the farm starts; a short path")
    num_cpus: Amount | None = None
    num_gpus: Amount | None = Field(default=None, description="of a Ray that the farm starts; default: all of them")
    resources: dict[str, Amount] = Field(default_factory=dict)
    object_store_bytes: Annotated[int, Field(ge=78_643_200)] = 78_643_200
    loopback: bool = Field(
        default=True, description="a Ray that the farm starts, or one at 127.x, binds loopback addresses only"
    )
    start_attempts: Annotated[int, Field(ge=1, le=10)] = 3
    start_timeout_s: Seconds = 180.0
    judges: dict[JudgeName, PooledJudge] = Field(default_factory=dict)
