"""`farm environments`: what can be run, one of them in full, or rows made by one of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from api.cli.options import DEFAULT_URL, ApiKey, AsJson, Url, client, console, print_json


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(environments)


def environments(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Show this one in full.")] = None,
    new: Annotated[str | None, typer.Argument(metavar="[NEW]", help="With init: the new environment's name.")] = None,
    into: Annotated[Path, typer.Option(help="With init: the folder that gets the package.")] = Path(),
    generate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DATASET[=WEIGHT][@LEVEL]",
            help="Print rows of this dataset, made here, one per line; several are mixed by weight. A level is one of "
            "the dataset's curriculum.",
        ),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="How many rows to generate.")] = 10,
    seed: Annotated[int, typer.Option(help="The same seed makes the same rows.")] = 0,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """What can be run; `farm environments reasoning_gym --generate DATASET` makes rows to submit.

    `farm environments init NEW` writes a package with an environment that runs, and its test.
    """
    if name == "init" or new is not None:
        _init(name, new, into)
        return
    if generate:
        _generate(name, generate, count, seed)
        return
    with client(url, api_key) as farm:
        if name is None:
            listed = farm.environments()
            if as_json:
                print_json([each.raw for each in listed])
                return
            from api.cli.tables import environments_table

            console().print(environments_table(listed))
            return
        one = farm.environment(name)
    if as_json:
        print_json(one.raw)
        return
    from rich.pretty import Pretty

    from api.cli.tables import tool_name

    out = console()
    out.print(f"[bold]{one.name}[/bold]  {one.description}")
    if one.error:
        out.print(f"cannot be loaded: {one.error}", style="red", markup=False)
    for tool in one.tools:
        described = tool.get("description") or (tool.get("function") or {}).get("description") or ""
        out.print(f"  tool {tool_name(tool)}: {described}", markup=False)
    out.print("row schema:", Pretty(one.row_schema))
    out.print("example row:", Pretty(one.example_row))


def _init(name: str | None, new: str | None, into: Path) -> None:
    from api.cli.authoring import write_package

    if name != "init" or new is None:
        raise typer.BadParameter("farm environments init NAME writes a new one; else give one name")
    folder = write_package(new, into)
    out = console()
    out.print(f"{folder} is written", markup=False)
    out.print(f"pip install -e {folder} && pytest {folder}", style="dim", markup=False)


def _generate(name: str | None, datasets: list[str], count: int, seed: int) -> None:
    """Rows of datasets, to standard output."""
    import sys

    import orjson

    if name != "reasoning_gym":
        raise typer.BadParameter("only the environment reasoning_gym makes rows: farm environments reasoning_gym …")
    from gym.environments.reasoning_mixture import Mixture, read_source
    from gym.errors import SettingsError

    try:
        for row in Mixture(dict(map(read_source, datasets)), seed=seed).rows(count):
            sys.stdout.buffer.write(orjson.dumps(row) + b"\n")
    except ImportError as error:
        raise SettingsError(
            f"{error}; `pip install 'rollout-farm[reasoning]'` installs what makes these rows"
        ) from None
    sys.stdout.flush()
