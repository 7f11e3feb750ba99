"""`farm judge`: run the pool of judges that Ray places, and query a running one."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from api.cli.options import AsJson, ConfigFile, print_json, settings_from

if TYPE_CHECKING:
    from gym.state.redis.driver import Redis

DataDir = Annotated[Path | None, typer.Option(file_okay=False, help="The farm's settings, to find its Redis.")]
RedisUrl = Annotated[str | None, typer.Option(help="The farm's Redis, if it is not the embedded one.")]
Name = Annotated[str, typer.Argument(help="A judge of the pool.")]


def register(app: typer.Typer) -> None:
    family = typer.Typer(help="Run a pool of judges that Ray places on GPUs, or query a running one.")
    family.callback(invoke_without_command=True)(judge)
    for command in (status, drain, scale):
        family.command()(command)
    app.add_typer(family, name="judge")


def judge(
    context: typer.Context,
    config: ConfigFile = None,
    data_dir: DataDir = None,
    redis_url: RedisUrl = None,
    ray_head_node_address: Annotated[
        str | None, typer.Option(help="HOST:PORT of a Ray head to attach to. [a separate Ray is started]")
    ] = None,
) -> None:
    """Run the pool in the foreground, if no command is given; SIGTERM drains it, a second one kills it."""
    if context.invoked_subcommand is not None:
        return
    from workers.judge_pool.orders import plan_file, plan_of

    settings = settings_from(
        config,
        data_dir=data_dir,
        redis={"url": redis_url},
        pool={"ray_head_node_address": ray_head_node_address},
    )
    if settings.redis.url is None:
        from gym.state.redis.embedded import embedded_url

        known = settings.redis.model_copy(update={"url": embedded_url(settings.data_dir)})
        settings = settings.model_copy(update={"redis": known})
    path = plan_file(settings.data_dir)
    plan_of(settings).write(path)
    python = str(settings.pool.python or sys.executable)
    root = str(Path(__file__).parents[2])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FARM_")}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    sys.stdout.flush()
    try:
        os.execve(python, [python, "-m", "workers.judge_pool.main", str(path)], environment)  # noqa: S606
    except OSError as error:
        from gym.errors import SettingsError

        raise SettingsError(f"pool.python {python} cannot be run: {error.strerror}") from None


def status(
    config: ConfigFile = None, data_dir: DataDir = None, redis_url: RedisUrl = None, as_json: AsJson = False
) -> None:
    """Show the running pool: its Ray, and each judge's replicas with state, load, GPUs and restarts."""
    from workers.judge_pool.orders import read_status

    redis, prefix = _redis(config, data_dir, redis_url)
    with redis:
        found = read_status(redis, prefix)
    if as_json:
        print_json(found)
    elif found is None:
        typer.echo("no judge pool is running")
    else:
        where = "attached to" if found["attached"] else "its own"
        typer.echo(f"pool of process {found['pid']}, Ray {found['ray']} ({where} {found['address']})")
        for name, each in found["judges"].items():
            failed = f", FAILED: {each['failed']}" if each["failed"] else ""
            bounds = f"{each['min_replicas']} to {each['max_replicas']}"
            typer.echo(f"{name}: {each['wanted']} of {bounds} wanted, {each['queued']} rollouts wait{failed}")
            for one in each["replicas"]:
                typer.echo(f"  {one['replica']}  {one['state']}  {one['url'] or '-'}  {one['in_flight']} in flight")
    if found is None:
        raise typer.Exit(1)


def drain(name: Name, config: ConfigFile = None, data_dir: DataDir = None, redis_url: RedisUrl = None) -> None:
    """End a judge's replicas when their calls are answered; its rollouts wait until `farm judge scale` adds some."""
    _order(config, data_dir, redis_url, name, {"do": "drain"})


def scale(
    name: Name,
    min_replicas: Annotated[int, typer.Argument(min=0, help="Minimum number of replicas.")],
    max_replicas: Annotated[int | None, typer.Argument(min=1, help="Maximum number of replicas. [the minimum]")] = None,
    config: ConfigFile = None,
    data_dir: DataDir = None,
    redis_url: RedisUrl = None,
) -> None:
    """Change a judge's bounds until the pool is restarted; a failed judge is tried again."""
    most = max(1, min_replicas) if max_replicas is None else max_replicas
    if most < min_replicas:
        raise typer.BadParameter(f"the maximum {most} is smaller than the minimum {min_replicas}")
    order = {"do": "scale", "min_replicas": min_replicas, "max_replicas": most}
    _order(config, data_dir, redis_url, name, order)


def _order(
    config: Path | None, data_dir: Path | None, redis_url: str | None, judge: str, wanted: dict[str, object]
) -> None:
    from workers.judge_pool.orders import order

    redis, prefix = _redis(config, data_dir, redis_url)
    with redis:
        order(redis, prefix, judge, wanted)
    typer.echo(f"{judge}: sent to the pool; see `farm judge status`")


def _redis(config: Path | None, data_dir: Path | None, redis_url: str | None) -> tuple[Redis, str]:
    from gym.state.redis.driver import Redis
    from gym.state.redis.embedded import embedded_url

    settings = settings_from(config, data_dir=data_dir, redis={"url": redis_url})
    url = settings.redis.url or embedded_url(settings.data_dir)
    return Redis.from_url(url, socket_timeout=10.0, socket_connect_timeout=10.0), settings.redis.prefix
