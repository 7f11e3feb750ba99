"""Commands that run the farm's processes: all of them (`up`), or one for a Procfile, containers and systemd."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.cli.options import ConfigFile, settings_from
from api.local.grace import GRACE_S

if TYPE_CHECKING:
    from api.shutdown import Shutdown
    from gym.config import Settings


STOP_S = 20.0  # the grace period that Compose or Kubernetes gives api, proxy and dispatcher

DataDir = Annotated[Path | None, typer.Option(file_okay=False, help="Directory of the farm's state. [farm-data]")]
Host = Annotated[str | None, typer.Option(help="The address to listen on. [127.0.0.1]")]
RedisUrl = Annotated[
    str | None, typer.Option(help="URL of your own Redis ≥ 6.2 or Valkey, instead of the embedded one.")
]
ListenPort = Annotated[int | None, typer.Option("--port", min=0, max=65535, help="The port to listen on.")]
Concurrency = Annotated[int | None, typer.Option(min=1, help="Rollouts that a worker runs at the same time. [256]")]


def register(app: typer.Typer) -> None:
    for command in (up, demo, api, proxy, dispatcher, worker, judge_worker, flower, redis):
        app.command()(command)


def up(
    config: ConfigFile = None,
    data_dir: DataDir = None,
    host: Host = None,
    api_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port of the api; 0 takes a free one. [8700]")
    ] = None,
    proxy_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port of the proxy; 0 takes a free one. [8701]")
    ] = None,
    flower_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port of Flower; 0 takes a free one. [5555]")
    ] = None,
    redis_url: RedisUrl = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Number of worker processes. [2]")] = None,
    concurrency: Concurrency = None,
    judges: Annotated[
        Path | None, typer.Option(dir_okay=False, help="A YAML file with the judges, instead of those in the settings.")
    ] = None,
    no_flower: Annotated[bool, typer.Option("--no-flower", help="Do not start Flower, Celery's dashboard.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the logs of the processes.")] = False,
    reload: Annotated[
        bool, typer.Option("--reload", help="Restart the processes when code changes (development).")
    ] = False,
) -> None:
    """Run the whole farm on this machine, in the foreground; Ctrl-C or SIGTERM drains it, a second one kills it.

    Prints `ready http://…` when a batch can be submitted. The state is kept in the data directory.
    """
    from contextlib import nullcontext

    from api.local.forking import fork_server_running

    with (
        nullcontext() if reload else fork_server_running() as fork_server
    ):  # first of all, since it imports while this process does
        from api.cli.judges import read_judges
        from api.local.up import run

        settings = settings_from(
            config,
            data_dir=data_dir,
            host=host,
            api={"port": api_port},
            proxy={"port": proxy_port},
            flower={"port": flower_port, "enabled": False if no_flower else None},
            redis={"url": redis_url},
            worker={"processes": workers, "concurrency": concurrency},
            judges=None if judges is None else read_judges(judges),
        )
        raise typer.Exit(run(settings, verbose=verbose, fork_server=fork_server, reload=reload))


def demo(
    rows: Annotated[int, typer.Option(min=1, help="Rows of each environment.")] = 25,
    num_samples: Annotated[int, typer.Option(min=1, help="Rollouts per row.")] = 4,
    data_dir: Annotated[Path, typer.Option(file_okay=False, help="Directory of the demo's results.")] = Path(
        "farm-data/demo"
    ),
    seed: Annotated[int, typer.Option(help="Which rows.")] = 0,
) -> None:
    """Run a demo: start a farm and a mock model, run real rows of every environment, stop everything."""
    from api.cli.demo import run

    raise typer.Exit(run(rows=rows, num_samples=num_samples, data_dir=data_dir, seed=seed))


def api(
    config: ConfigFile = None,
    data_dir: DataDir = None,
    host: Host = None,
    port: ListenPort = None,
    redis_url: RedisUrl = None,
) -> None:
    """Run the REST api."""
    settings = _process(config, data_dir=data_dir, host=host, redis={"url": redis_url}, api={"port": port})
    from api.app import create_app
    from api.shutdown import Shutdown
    from api.trusted_hosts import trusted_hosts

    shutdown = Shutdown()
    app = trusted_hosts(create_app(settings, shutdown), settings)
    raise typer.Exit(serve(app, settings, settings.api.port, shutdown))


def proxy(
    config: ConfigFile = None,
    data_dir: DataDir = None,
    host: Host = None,
    port: ListenPort = None,
    redis_url: RedisUrl = None,
) -> None:
    """Run the model proxy, for agents outside the workers."""
    settings = _process(config, data_dir=data_dir, host=host, redis={"url": redis_url}, proxy={"port": port})
    from api.proxy.app import create_app
    from api.shutdown import Shutdown
    from api.trusted_hosts import trusted_hosts

    shutdown = Shutdown()
    app = trusted_hosts(create_app(settings, shutdown), settings)
    raise typer.Exit(serve(app, settings, settings.proxy.port, shutdown))


def dispatcher(config: ConfigFile = None, data_dir: DataDir = None, redis_url: RedisUrl = None) -> None:
    """Schedule queued rollouts onto workers; run a second one as a hot standby."""
    settings = _process(config, data_dir=data_dir, redis={"url": redis_url})
    from workers.dispatch.dispatcher import run

    run(settings)


def worker(
    config: ConfigFile = None,
    data_dir: DataDir = None,
    redis_url: RedisUrl = None,
    concurrency: Concurrency = None,
) -> None:
    """Run one Celery worker; SIGTERM drains it."""
    settings = _process(config, data_dir=data_dir, redis={"url": redis_url}, worker={"concurrency": concurrency})
    from workers.main import run

    raise typer.Exit(run(settings))


def judge_worker(config: ConfigFile = None, data_dir: DataDir = None, redis_url: RedisUrl = None) -> None:
    """Run one Celery worker that has judges score finished conversations; SIGTERM drains it."""
    settings = _process(config, data_dir=data_dir, redis={"url": redis_url})
    from workers.main import run_judging

    raise typer.Exit(run_judging(settings))


def flower(
    config: ConfigFile = None,
    data_dir: DataDir = None,
    host: Host = None,
    port: ListenPort = None,
    redis_url: RedisUrl = None,
) -> None:
    """Run Flower, Celery's dashboard."""
    settings = _process(config, data_dir=data_dir, host=host, redis={"url": redis_url}, flower={"port": port})
    from api.local.dashboard import run

    raise typer.Exit(run(settings))


def redis(
    config: ConfigFile = None,
    data_dir: DataDir = None,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 0,
) -> None:
    """Run the embedded Redis server; processes with the same data directory find it."""
    settings = settings_from(config, data_dir=data_dir)
    from gym.state.redis.data_dir import DataDirLock
    from gym.state.redis.embedded import EmbeddedRedis

    lock = DataDirLock.take(settings.data_dir)
    command = EmbeddedRedis(settings.data_dir, port, lock=lock).prepare()
    os.set_inheritable(lock.fd, True)
    os.execv(command[0], command)  # noqa: S606 - a server found on this machine


def serve(app: Any, settings: Settings, port: int, shutdown: Shutdown) -> int:
    """Serve an ASGI app until SIGTERM or SIGINT; open requests get a few seconds."""
    import uvicorn

    from api.bounded_http import bounded_http, connections_possible
    from api.local.serving import QuietServer
    from gym.processes.garbage import collect_garbage_less

    collect_garbage_less()
    # uvicorn passes a signal on to the previous handler after its shutdown; the exit status must be its own
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    server = QuietServer(
        uvicorn.Config(
            app,
            host=settings.host,
            port=port,
            loop="uvloop",
            http=bounded_http(connections_possible(settings.api.max_connections)),
            ws="none",
            lifespan="on",
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_graceful_shutdown=GRACE_S,
        ),
        shutdown,
    )
    server.run()
    return 0 if server.started else 1


def _process(config: Path | None, **overrides: Any) -> Settings:
    """Configure logging and return the settings of one process, including its Redis.

    Raises SettingsError if they, or that Redis, cannot be used.
    """
    from api.local.logs import configure_logging

    settings = settings_from(config, **overrides)
    configure_logging(settings.log_level)
    if settings.redis.url is None:
        from gym.state.redis.embedded import embedded_url

        known = settings.redis.model_copy(update={"url": embedded_url(settings.data_dir)})
        settings = settings.model_copy(update={"redis": known})
    if settings.redis.url is not None:
        from gym.state.redis.eviction import require_noeviction
        from gym.state.redis.format import require_data_format, require_format

        require_noeviction(settings.redis.url)
        require_format(settings.redis.url, settings.redis.prefix)
        require_data_format(settings.data_dir)
    return settings
