"""The plan of the pool, as the farm's side writes it to a file: `farm judge` resolves settings, the pool reads this.

Standard library only: it is read under the interpreter of a trainer's Ray.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """One judge: the command of a replica, its resources, and the number of replicas.

    In `command`, `{host}` and `{port}` are replaced at the start. `load_path` gives `in_flight` and `waiting` (the
    judge server's JSON, or Prometheus text of vLLM).
    """

    judge: str
    kind: str
    model: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    num_cpus: float = 0.1
    num_gpus: float = 0.0
    resources: Mapping[str, float] = field(default_factory=dict)
    min_replicas: int = 1
    max_replicas: int = 1
    target_load: float = 64.0
    scale_down_after_s: float = 60.0
    capacity: int = 1024
    ready_timeout_s: float = 600.0
    drain_s: float = 60.0
    max_restarts: int = 5
    restart_window_s: float = 600.0
    load_path: str = "/v1/judge"

    @property
    def needs(self) -> dict[str, float]:
        """Return the resources of one replica, by Ray's names."""
        wanted = {"CPU": self.num_cpus, "GPU": self.num_gpus, **self.resources}
        return {name: amount for name, amount in wanted.items() if amount}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """The Ray cluster. With an `address` the pool only attaches to it; without one, the pool starts a cluster."""

    address: str | None
    namespace: str
    temp_dir: str | None = None
    num_cpus: float | None = None
    num_gpus: float | None = None
    resources: Mapping[str, float] = field(default_factory=dict)
    object_store_bytes: int = 78_643_200
    loopback: bool = True
    start_attempts: int = 3
    start_timeout_s: float = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisKeys:
    """The farm's keys that the pool reads and writes; `batch_judges` has `*` for a batch's id."""

    leases: str
    infos: str
    active: str
    batch_judges: str
    status: str
    orders: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolPlan:
    """The whole plan of a pool."""

    redis_url: str = field(repr=False)
    keys: RedisKeys
    cluster: Cluster
    host: str
    deployments: tuple[Deployment, ...]

    def write(self, path: Path) -> None:
        """Store the plan, readable by its owner only; it holds the URL of Redis and keys of judges."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.chmod(0o600)
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> PoolPlan:
        """Return the plan that `write` stored."""
        stored: dict[str, Any] = json.loads(path.read_text())
        return cls(
            redis_url=stored["redis_url"],
            keys=RedisKeys(**stored["keys"]),
            cluster=Cluster(**stored["cluster"]),
            host=stored["host"],
            deployments=tuple(
                Deployment(**{**each, "command": tuple(each["command"])}) for each in stored["deployments"]
            ),
        )
