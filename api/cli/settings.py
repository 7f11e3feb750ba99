"""`farm config show`: print the resolved settings."""

from __future__ import annotations

import typer

from api.cli.options import AsJson, ConfigFile, print_json, settings_from


def register(app: typer.Typer) -> None:
    config = typer.Typer(help="The settings.", no_args_is_help=True)
    config.command()(show)
    app.add_typer(config, name="config")


def show(config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Print the settings from defaults, file and environment, secrets masked."""
    masked = settings_from(config).masked()
    if as_json:
        print_json(masked)
        return
    import yaml

    typer.echo(yaml.safe_dump(masked, sort_keys=False, allow_unicode=True), nl=False)
