"""`farm environments`: list environments, show one in full, generate rows, write a new one.

A running farm answers if there is one. Otherwise the environments of this installation and of `--config` are read, so
that authors need no farm.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from api.cli.options import DEFAULT_URL, ApiKey, AsJson, ConfigFile, client, console, print_json, progress_console

if TYPE_CHECKING:
    from gym.client import EnvironmentInfo

LOCAL_TRY_S = 2.0

Url = Annotated[
    str | None,
    typer.Option("--url", envvar="FARM_URL", help="Ask this farm, and fail if none answers."),
]


class _NameOrCommand(TyperGroup):
    """Command group that reads an argument which names no subcommand as an environment: `farm environments weather`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "--help" in args or "-h" in args:
            return super().parse_args(ctx, args)
        if not args or args[0].startswith("-"):
            args = ["list", *args]
        elif args[0] not in self.commands:
            args = ["show", *args]
        return super().parse_args(ctx, args)


def register(app: typer.Typer) -> None:
    environments = typer.Typer(
        cls=_NameOrCommand, help="List environments; `farm environments NAME` shows one in full."
    )
    environments.command("list")(list_all)
    environments.command()(show)
    environments.command()(init)
    app.add_typer(environments, name="environments")


def list_all(url: Url = None, api_key: ApiKey = None, config: ConfigFile = None, as_json: AsJson = False) -> None:
    """List the available environments."""
    from api.cli.client.tables import environments_table

    listed = _from_farm(url, api_key, config) or _installed(config)
    if as_json:
        print_json([each.raw for each in listed])
    else:
        console().print(environments_table(listed))


def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="An environment.")],
    generate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DATASET[=WEIGHT][@LEVEL]",
            help="Generate rows of this dataset, one per line; several are mixed by weight. LEVEL"
            " is a curriculum level of the dataset.",
        ),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Number of rows to generate.")] = 10,
    seed: Annotated[int, typer.Option(help="Seed of the generated rows.")] = 0,
    url: Url = None,
    api_key: ApiKey = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Show one environment: its tools, the schema of its rows, an example; with --generate, generate rows."""
    if generate:
        _generate(name, generate, count, seed)
        return
    listed = _from_farm(url, api_key, config) or _installed(config)
    one = next((each for each in listed if each.name == name), None)
    if one is None:
        from gym.errors import NotFound

        known = ", ".join(sorted(each.name for each in listed))
        raise NotFound("environment_not_found", f"there is no environment {name!r}; there are: {known}")
    if as_json:
        print_json(one.raw)
    else:
        _print_environment(one)


def init(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the new environment.")],
    into: Annotated[Path, typer.Option(help="Folder in which to write the package.")] = Path(),
) -> None:
    """Write a package with a working environment and its test."""
    from api.cli.client.authoring import write_package

    folder = write_package(name, into)
    out = console()
    out.print(f"{folder} is written", markup=False)
    out.print(f"pip install -e {folder} && pytest {folder}", style="dim", markup=False)


def _from_farm(url: str | None, api_key: str | None, config: Path | None) -> list[EnvironmentInfo] | None:
    """Ask a farm. Return None if `config` is given, or if no URL is given and none answers at the default one."""
    from gym.errors import Unavailable

    if url is not None:
        with client(url, api_key) as farm:
            return farm.environments()
    if config is not None:
        return None
    try:
        with client(DEFAULT_URL, api_key, timeout_s=LOCAL_TRY_S, retries=0) as farm:
            return farm.environments()
    except Unavailable:
        progress_console().print(
            f"no farm answers at {DEFAULT_URL}; these are the environments of this installation", style="dim"
        )
        return None


def _installed(config: Path | None) -> list[EnvironmentInfo]:
    from api.cli.options import settings_from
    from gym.client.records import read_environment
    from gym.environments.registry import load_registry

    settings = settings_from(config)
    registry = load_registry(settings.environments, sandbox=settings.sandbox)
    return [read_environment(each) for each in registry.describe()]


def _print_environment(one: EnvironmentInfo) -> None:
    from rich.pretty import Pretty

    from api.cli.client.tables import tool_name

    out = console()
    out.print(f"[bold]{one.name}[/bold]  {one.description}")
    if one.error:
        out.print(f"cannot be loaded: {one.error}", style="red", markup=False)
    for tool in one.tools:
        described = tool.get("description") or (tool.get("function") or {}).get("description") or ""
        out.print(f"  tool {tool_name(tool)}: {described}", markup=False)
    out.print("row schema:", Pretty(one.row_schema))
    out.print("example row:", Pretty(one.example_row))


def _generate(name: str, datasets: list[str], count: int, seed: int) -> None:
    import sys

    if name != "reasoning_gym":
        raise typer.BadParameter("only the environment reasoning_gym generates rows: farm environments reasoning_gym …")
    from gym.environments.builtin.reasoning_mixture import Mixture, read_source
    from gym.errors import SettingsError
    from gym.plain import exact_json

    try:
        for row in Mixture(dict(map(read_source, datasets)), seed=seed).rows(count):
            sys.stdout.buffer.write(exact_json.dumps(row) + b"\n")
    except ImportError as error:
        raise SettingsError(
            f"{error}; `pip install 'rollout-farm[reasoning]'` installs the generator of these rows"
        ) from None
    sys.stdout.flush()
