"""The farm's side of the pool: its plan, made from the settings, and the orders to it while it runs.

Unlike its neighbours this module runs in the farm's environment.
"""

from __future__ import annotations

import sys
from pathlib import Path

import orjson

from gym.config import Settings, is_loopback
from gym.errors import NotFound, SettingsError
from gym.jsontypes import JsonObject
from gym.judges.pool import PooledJudge
from gym.judges.settings import JudgeSettings
from gym.state.redis.driver import Redis
from gym.state.redis.keys import Keys
from workers.judge_pool.plan import Cluster, Deployment, PoolPlan, RedisKeys

VLLM_GPU_SHARE = 0.9  # of the part of a GPU that a replica has


def plan_of(settings: Settings) -> PoolPlan:
    """Return the pool's plan. Raises SettingsError for a judge that it cannot serve, naming the setting."""
    if settings.redis.url is None:
        raise SettingsError("no Redis is known: give --redis-url or FARM_REDIS_URL")
    pool = settings.pool
    cluster = Cluster(
        address=pool.ray_head_node_address,
        namespace=pool.namespace,
        temp_dir=None if pool.temp_dir is None else str(pool.temp_dir.resolve()),
        num_cpus=pool.num_cpus,
        num_gpus=pool.num_gpus,
        resources=pool.resources,
        object_store_bytes=pool.object_store_bytes,
        loopback=pool.loopback,
        start_attempts=pool.start_attempts,
        start_timeout_s=pool.start_timeout_s,
    )
    return PoolPlan(
        redis_url=settings.redis.url,
        keys=pool_keys(settings.redis.prefix),
        cluster=cluster,
        host=pool.host,
        deployments=deployments_of(settings),
    )


def deployments_of(settings: Settings) -> tuple[Deployment, ...]:
    """Return the deployment of each judge of the pool. Raises SettingsError as `plan_of` does."""
    return tuple(_deployment(settings, name, pooled) for name, pooled in settings.pool.judges.items())


def pool_keys(prefix: str) -> RedisKeys:
    """Return the keys that the pool uses."""
    keys = Keys(prefix)
    return RedisKeys(
        leases=keys.judge_replicas,
        infos=keys.judge_replica_info,
        active=keys.active,
        batch_judges=keys.batch("*").judges,
        status=keys.judge_pool,
        orders=keys.judge_pool_orders,
    )


def read_status(redis: Redis, prefix: str) -> JsonObject | None:
    """Return the pool's last status; None if no pool is running."""
    stored = redis.get(pool_keys(prefix).status)
    return orjson.loads(stored) if isinstance(stored, bytes) else None


def order(redis: Redis, prefix: str, judge: str, wanted: JsonObject) -> None:
    """Send the running pool an order. Raises NotFound if no pool is running, or it has no such judge."""
    status = read_status(redis, prefix)
    if status is None:
        raise NotFound("no_judge_pool", "no judge pool is running: `farm judge`, or pool.judges in the settings")
    if judge not in status["judges"]:
        there = ", ".join(sorted(status["judges"]))
        raise NotFound("judge_not_found", f"the pool has no judge {judge!r}, it has {there}")
    redis.rpush(pool_keys(prefix).orders, orjson.dumps({"judge": judge, **wanted}))


def _deployment(settings: Settings, name: str, pooled: PooledJudge) -> Deployment:
    judge = settings.judges.get(name)
    if judge is None:
        raise SettingsError(f"pool.judges has {name!r}, and there is no such judge under `judges`")
    if judge.base_urls:
        raise SettingsError(f"judge {name} has base_urls and is not asked at replicas: take it out of pool.judges")
    if not is_loopback(settings.pool.host) and judge.api_key is None:
        raise SettingsError(
            f"pool.host is {settings.pool.host}, which others can reach, and judge {name} has no api_key: give one"
        )
    chat = judge.kind in ("llm", "pairwise", "remote")
    command = pooled.command or (_vllm(judge, pooled) if chat else _own_server(judge, pooled))
    secret = {} if judge.api_key is None else {"VLLM_API_KEY" if chat else "FARM_JUDGE_KEY": judge.api_key}
    return Deployment(
        judge=name,
        kind=judge.kind,
        model=judge.model,
        command=command,
        environment={**secret, **pooled.environment},
        num_cpus=pooled.num_cpus,
        num_gpus=pooled.num_gpus,
        resources=pooled.resources,
        min_replicas=pooled.min_replicas,
        max_replicas=pooled.max_replicas,
        target_load=pooled.target_load,
        scale_down_after_s=pooled.scale_down_after_s,
        capacity=pooled.capacity,
        ready_timeout_s=pooled.ready_timeout_s,
        drain_s=pooled.drain_s,
        max_restarts=pooled.max_restarts,
        restart_window_s=pooled.restart_window_s,
        load_path="/metrics" if chat else "/v1/judge",
    )


def _vllm(judge: JudgeSettings, pooled: PooledJudge) -> tuple[str, ...]:
    """Return the `vllm serve` command for the replica's GPUs. Having none fails here, not at the first request."""
    if not pooled.num_gpus and not pooled.resources:
        raise SettingsError(
            f"a judge of kind {judge.kind} is served by vLLM on GPUs and its num_gpus is 0: give pool.judges its "
            "num_gpus or a custom resource that stands for one, a `command` of your own, or make it `kind: remote`"
        )
    share: tuple[str, ...] = ()
    if 0 < pooled.num_gpus < 1:
        share = ("--gpu-memory-utilization", f"{pooled.num_gpus * VLLM_GPU_SHARE:.3f}")
    return (
        str(pooled.python or sys.executable),
        *("-m", "vllm.entrypoints.cli.main", "serve", judge.model),
        *("--host", "{host}", "--port", "{port}", "--tensor-parallel-size", str(max(1, int(pooled.num_gpus)))),
        *share,
        *pooled.args,
    )


def _own_server(judge: JudgeSettings, pooled: PooledJudge) -> tuple[str, ...]:
    model = ("--model", judge.model) if judge.model else ()
    return (
        str(pooled.python or sys.executable),
        *("-m", "api.cli.main", "judge-server", "--kind", judge.kind, "--host", "{host}", "--port", "{port}"),
        *("--capacity", str(pooled.capacity)),
        *model,
        *pooled.args,
    )


def plan_file(data_dir: Path) -> Path:
    """Return the path of the plan; only its owner can read the file."""
    return data_dir.resolve() / "judge-pool.json"
