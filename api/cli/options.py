"""Options shared by commands, and construction of settings, client and console."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from gym.client import Farm
    from gym.config import Settings

PIPE_COLUMNS = 160
FIRST_CONTACT_S = 3.0
DEFAULT_URL = "http://127.0.0.1:8700"

Url = Annotated[str, typer.Option("--url", envvar="FARM_URL", help="The farm's address.")]
ApiKey = Annotated[
    str | None,
    typer.Option("--api-key", envvar="FARM_API_KEY", show_envvar=True, help="API key, if the farm needs one."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", envvar="FARM_CONFIG", help="A YAML file of settings.", dir_okay=False)
]


def settings_from(config: Path | None, **overrides: Any) -> Settings:
    """Load the settings; overrides that are None, also inside sections, are ignored.

        settings_from(config, host=host, api={"port": api_port}, redis={"url": redis_url})

    Raises SettingsError with a line for each problem.
    """
    from gym.config import load_settings

    return load_settings(config, **_given(overrides))


def client(url: str, api_key: str | None, *, timeout_s: float = 60.0, retries: int = 5) -> Farm:
    """Return the blocking client that commands use.

    Its retries outlast a restart. An address at which nothing listens is reported within `FIRST_CONTACT_S`, because the
    user waits. Raises Unavailable.
    """
    from gym.client import connect_sync

    _require_listener(url)
    return connect_sync(url, api_key=api_key, timeout_s=timeout_s, retries=retries)


def _require_listener(url: str) -> None:
    """Raise Unavailable unless a process accepts connections at an HTTP URL; other URLs are not checked."""
    import socket
    import time
    from urllib.parse import urlsplit
    from urllib.request import getproxies, proxy_bypass

    from gym.errors import Unavailable

    parts = urlsplit(url)
    host = parts.hostname
    if parts.scheme not in ("http", "https") or not host or (parts.scheme in getproxies() and not proxy_bypass(host)):
        return
    until = time.monotonic() + FIRST_CONTACT_S
    while (left_s := until - time.monotonic()) > 0:
        try:
            socket.create_connection((host, parts.port or (443 if parts.scheme == "https" else 80)), left_s).close()
        except OSError as error:
            failure = error
            time.sleep(min(0.25, max(0.0, until - time.monotonic())))
        else:
            return
    raise Unavailable(
        "farm_unreachable", f"no farm answers at {url}: {failure}; start one with `farm up`, or give --url or FARM_URL"
    )


def console() -> Console:
    """Console for tables; without a terminal its lines need not be short."""
    from rich.console import Console

    made = Console(highlight=False)
    if not made.is_terminal and made.width < PIPE_COLUMNS:
        made.width = PIPE_COLUMNS
    return made


def progress_console() -> Console:
    """Console for progress and remarks, on standard error, so that piped output stays clean."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def print_json(value: object) -> None:
    """Print a value as indented JSON on standard output."""
    import orjson

    typer.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS).decode())


def _given(overrides: dict[str, Any]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for name, value in overrides.items():
        kept = _given(value) if isinstance(value, dict) else value
        if kept is not None and kept != {}:
            given[name] = kept
    return given
