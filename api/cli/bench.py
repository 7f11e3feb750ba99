"""`farm bench`: measure the farm on this machine, against a bare loop in the same run."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from api.cli.options import AsJson

if TYPE_CHECKING:
    from collections.abc import Callable

    from api.bench.figures import Figure
    from gym.jsontypes import JsonObject


def register(app: typer.Typer) -> None:
    app.command("bench")(bench)


def bench(
    cases: Annotated[
        list[str] | None, typer.Argument(help="Names of measurements. [all but `profile` and `scale`]")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, max=50, help="Number of repeats; the median is reported.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Measure the farm on this machine: start it, warm up, repeat, print medians and spread."""
    from api.bench.cases import ON_DEMAND, ON_ONE_FARM, ON_THEIR_OWN
    from api.bench.lab import laboratory
    from api.cli.options import console, print_json, progress_console
    from gym.errors import SettingsError

    alone = ON_THEIR_OWN | ON_DEMAND
    known = [*alone, *ON_ONE_FARM]
    wanted = cases or [*ON_THEIR_OWN, *ON_ONE_FARM]
    if unknown := sorted(set(wanted) - set(known)):
        raise SettingsError(f"there is no measurement {', '.join(unknown)}; known are {', '.join(known)}")
    progress = progress_console()
    figures: list[Figure] = []
    failed: list[str] = []

    def measure(name: str, case: Callable[[], list[Figure]]) -> None:
        """Run one case; a failure is printed and does not lose the figures of the others."""
        progress.print(f"{name}: {(alone | ON_ONE_FARM)[name].__doc__}", soft_wrap=True)
        try:
            figures.extend(case())
        except SettingsError:
            raise
        except Exception as error:  # noqa: BLE001  # whatever it is: told below, and by the exit status
            failed.append(name)
            progress.print(f"{name} failed: {type(error).__name__}: {error}", soft_wrap=True, style="red")

    for name in (name for name in wanted if name in alone):
        measure(name, partial(alone[name], repeats))
    if shared := [name for name in ON_ONE_FARM if name in wanted]:
        with laboratory() as lab:
            for name in shared:
                measure(name, partial(ON_ONE_FARM[name], lab, repeats))
    if as_json:
        print_json({"machine": _machine(), "failed": failed, "figures": [figure.as_dict() for figure in figures]})
    else:
        console().print(_table(figures))
    if failed:
        raise typer.Exit(1)


def _machine() -> JsonObject:
    import os
    import platform
    from datetime import UTC, datetime

    return {
        "cores": os.cpu_count(),
        "load": list(os.getloadavg()),
        "python": platform.python_version(),
        "system": platform.platform(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _table(figures: list[Figure]) -> object:
    from rich.table import Table

    machine = _machine()
    table = Table(title=f"{machine['cores']} cores, load {machine['load'][0]:.1f}, Python {machine['python']}")
    for heading in ("case", "what"):
        table.add_column(heading)
    for heading in ("median", "min", "max", "target"):
        table.add_column(heading, justify="right")
    for figure in figures:
        sign = "<=" if figure.better == "lower" else ">="
        mark = {None: "", True: " [green]ok[/]", False: " [yellow]missed[/]"}[figure.reached]
        if figure.missing is not None:
            table.add_row(figure.case, f"{figure.name}: {figure.missing}", "none", "", "", "")
            continue
        table.add_row(
            figure.case,
            figure.name,
            f"{figure.value:.4g} {figure.unit}",
            f"{min(figure.repeats):.4g}",
            f"{max(figure.repeats):.4g}",
            "" if figure.target is None else f"{sign} {figure.target:g}{mark}",
        )
    return table
