"""Commands on judges: `farm judge-server`, and reading of their settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from api.cli.options import ConfigFile, settings_from


def register(app: typer.Typer) -> None:
    app.command("judge-server")(judge_server)


def judge_server(
    kind: Annotated[str, typer.Option(help="embedding or reward_model.")],
    model: Annotated[
        str | None, typer.Option(help="Name or folder of a model. [all-minilm-l6-v2, clean-language]")
    ] = None,
    judge: Annotated[
        str | None, typer.Option(help="Publish the server in Redis as a replica of this judge of the settings.")
    ] = None,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 0,
    public_url: Annotated[
        str | None, typer.Option(help="URL by which others reach the server, if not by that address.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Maximum number of texts in one batch.")] = 32,
    batch_wait_s: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="How long a text waits for others to form a batch.")
    ] = 0.005,
    capacity: Annotated[
        int, typer.Option(min=1, help="Maximum number of waiting texts; more are answered 429.")
    ] = 1024,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the model; more replicas use cores better.")] = 1,
    api_key: Annotated[
        str | None, typer.Option(envvar="FARM_JUDGE_KEY", help="Key that callers must send; required beyond loopback.")
    ] = None,
    config: ConfigFile = None,
    data_dir: Annotated[
        Path | None, typer.Option(file_okay=False, help="The farm's settings, to find its Redis.")
    ] = None,
    redis_url: Annotated[str | None, typer.Option(help="The farm's Redis, if it is not the embedded one.")] = None,
) -> None:
    """Serve an embedding model or a classifier to judge workers; SIGTERM drains it."""
    from api.local.logs import configure_logging
    from workers.judge_server.main import ServerOptions, run

    settings = settings_from(config, data_dir=data_dir, redis={"url": redis_url})
    if judge is not None and settings.judges and judge not in settings.judges:
        raise typer.BadParameter(
            f"the settings have no judge {judge!r}; they have {', '.join(sorted(settings.judges))}"
        )
    configure_logging(settings.log_level)
    url = settings.redis.url
    if judge is not None and url is None:
        from gym.state.redis.embedded import embedded_url

        url = embedded_url(settings.data_dir)
    options = ServerOptions(
        kind=kind,
        model=model,
        judge=judge,
        host=host,
        port=port,
        url=public_url,
        redis_url=url if judge is not None else None,
        prefix=settings.redis.prefix,
        batch_size=batch_size,
        batch_wait_s=batch_wait_s,
        capacity=capacity,
        threads=threads,
        api_key=api_key,
    )
    raise typer.Exit(run(options))


def read_judges(path: Path) -> dict[str, Any]:
    """Read the judges in a YAML file: a mapping by name, at the top level or under `judges`. Raises SettingsError."""
    import yaml

    from gym.errors import SettingsError

    try:
        read = yaml.safe_load(path.read_text())
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not YAML: {error}") from None
    if isinstance(read, dict) and set(read) == {"judges"}:
        read = read["judges"]
    if not isinstance(read, dict) or not read:
        raise SettingsError(f"{path} lists no judges; expected is a mapping such as `similarity: {{kind: embedding}}`")
    return read
