"""`farm doctor`: check this machine and its farm, and advise on each problem."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from api.cli.options import ApiKey, AsJson, ConfigFile, console, print_json, settings_from

if TYPE_CHECKING:
    from api.cli.doctor.checks import Check

LOOK = {"ok": "green", "warn": "yellow", "fail": "red"}


def register(app: typer.Typer) -> None:
    app.command()(doctor)


def doctor(
    config: ConfigFile = None,
    url: Annotated[
        str | None,
        typer.Option("--url", envvar="FARM_URL", help="The farm's address, if it differs from the settings."),
    ] = None,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Check Python, settings, Redis, api, environments, policies, judges and ports; exit with 1 if a check fails.

    With the --url of a farm on another machine, check the network path, versions, key, policies and clocks.
    """
    out = console()
    found: list[Check] = []
    for check in checks(config, url, api_key):
        found.append(check)
        if not as_json:
            out.print(f"[{LOOK[check.level]}]{check.level:4}[/]", end="  ")
            out.print(f"{check.name}: {check.seen}", markup=False, soft_wrap=True)
            if check.advice:
                out.print(f"      → {check.advice}", markup=False, soft_wrap=True)
    if as_json:
        print_json([{"name": c.name, "level": c.level, "seen": c.seen, "advice": c.advice} for c in found])
    if any(check.level == "fail" for check in found):
        raise typer.Exit(1)


def checks(config: Path | None, url: str | None, api_key: str | None) -> Iterator[Check]:
    """Run all checks in order; with unusable settings only the first ones."""
    from api.cli.doctor import checks as look
    from api.cli.doctor.judge_checks import check_judges, check_pool
    from api.cli.doctor.remote_checks import check_clock, check_way, is_apart
    from gym.errors import SettingsError

    yield look.check_python()
    yield look.check_packages()
    try:
        settings = settings_from(config)
    except SettingsError as error:
        yield look.Check(
            name="settings",
            level=look.Level.FAIL,
            seen=str(error),
            advice="fix the settings, then run this command again",
        )
        return
    yield look.Check(name="settings", level=look.Level.OK, seen=str(config) if config else "defaults and environment")
    if url and is_apart(url):
        yield from check_way(url, settings.proxy.port, api_key)
        yield look.check_api(url, api_key)
        yield from look.check_policies(settings, url, api_key)
        yield check_clock(url)
        return
    address = url or look.local_url(settings.host, settings.api.port)
    yield from look.check_redis(settings)
    yield look.check_api(address, api_key)
    yield from look.check_environments(settings, address, api_key)
    yield look.check_sandbox(settings)
    yield from look.check_policies(settings, address, api_key)
    yield from check_judges(settings, address, api_key)
    yield from check_pool(settings)
    yield check_clock(address)
    yield from look.check_ports(settings)
