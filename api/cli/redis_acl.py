"""`farm redis-acl`: create the Redis user of a trainer that shares only a Redis with the farm."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import quote, urlencode, urlsplit

import typer

from api.cli.options import ConfigFile, settings_from

PASSWORD_BYTES = 32


def register(app: typer.Typer) -> None:
    app.command("redis-acl")(redis_acl)


def redis_acl(
    name: Annotated[str, typer.Argument(help="Name of the user: letters, digits and _.-")],
    scope: Annotated[
        Literal["submit", "read"],
        typer.Option(help="`read` may follow batches, `submit` may do everything that the API offers."),
    ] = ("submit"),
    password: Annotated[
        str | None,
        typer.Option(envvar="FARM_CLIENT_PASSWORD", show_envvar=True, help="Password of the user. [a generated one]"),
    ] = None,
    prompt: Annotated[bool, typer.Option("--prompt", help="Prompt for the password.")] = False,
    config: ConfigFile = None,
) -> None:
    """Print the ACL command for a client of `connect("redis://…")`; run it on the Redis server, as in `… | redis-cli`.

    The user may use the client's own channels and no key. The command holds only the password's digest; a generated
    password is shown once, on standard error.
    """
    import secrets

    from gym.relay.acl import acl_line
    from gym.relay.address import DEFAULT_PREFIX, farm_channels

    settings = settings_from(config)
    url = settings.redis.url or "redis://127.0.0.1:6379/0"
    channels = farm_channels(url, settings.redis.prefix)
    if prompt:
        password = typer.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    made = None if password else secrets.token_urlsafe(PASSWORD_BYTES)
    typer.echo(acl_line(channels, name, scope=scope, password=password or made or ""))
    parts = urlsplit(url)
    scheme = "redis" if parts.scheme == "unix" else parts.scheme
    host = parts.netloc.rpartition("@")[2] or "HOST:6379"
    query = "" if channels.prefix == DEFAULT_PREFIX else "?" + urlencode({"prefix": channels.prefix})
    shown = quote(made) if made else "PASSWORD"
    typer.echo(f'connect("{scheme}://{name}:{shown}@{host}/{channels.db}{query}")', err=True)
    typer.echo("Redis forgets users at a restart without `ACL SAVE` or `CONFIG REWRITE`.", err=True)
