"""Options that several commands share, and how a command gets its settings, its client and its console."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from gym.client import Farm
    from gym.config import Settings

PIPE_COLUMNS = 160
DEFAULT_URL = "http://127.0.0.1:8700"

Url = Annotated[str, typer.Option("--url", envvar="FARM_URL", help="The farm's address.")]
ApiKey = Annotated[
    str | None, typer.Option("--api-key", envvar="FARM_API_KEY", show_envvar=True, help="The key to send, if it asks.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", envvar="FARM_CONFIG", help="A YAML file of settings.", dir_okay=False)
]


def settings_from(config: Path | None, **overrides: Any) -> Settings:
    """Load the settings; overrides that are `None`, also inside sections, were not given and change nothing.

        settings_from(config, host=host, api={"port": api_port}, redis={"url": redis_url})

    Raises SettingsError with a line for each problem.
    """
    from gym.config import load_settings

    return load_settings(config, **_given(overrides))


def client(url: str, api_key: str | None, *, timeout_s: float = 60.0, retries: int = 5) -> Farm:
    """The blocking client that commands use; few retries, since somebody is waiting."""
    from gym.client import connect_sync

    return connect_sync(url, api_key=api_key, timeout_s=timeout_s, retries=retries)


def console() -> Console:
    """Where tables go; without a terminal nobody needs their lines short."""
    from rich.console import Console

    made = Console(highlight=False)
    if not made.is_terminal and made.width < PIPE_COLUMNS:
        made.width = PIPE_COLUMNS
    return made


def progress_console() -> Console:
    """Where progress and remarks go, so that what is piped stays clean."""
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
