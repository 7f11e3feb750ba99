"""`farm rows check`: find invalid rows in a file before anything is submitted."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from api.cli.options import AsJson, console, print_json

SHOWN_LINES = 5
FAILED = 1


def register(app: typer.Typer) -> None:
    rows = typer.Typer(help="Check files of rows.", no_args_is_help=True)
    rows.command()(check)
    app.add_typer(rows, name="rows")

    @rows.callback()
    def family() -> None:
        """Check files of rows."""


@dataclass(slots=True)
class RowsReport:
    """Contents of a file; `problems` maps each problem to its lines, counted from 1."""

    rows: int = 0
    rollouts: int = 0
    environments: dict[str, int] = field(default_factory=dict)
    problems: dict[str, list[int]] = field(default_factory=dict)

    def note(self, problem: str, line: int) -> None:
        """Add a line with a problem."""
        self.problems.setdefault(problem, []).append(line)

    def as_json(self) -> dict[str, Any]:
        """Return the report for `--json`."""
        bad = {line for lines in self.problems.values() for line in lines}
        return {
            "rows": self.rows,
            "bad_rows": len(bad),
            "rollouts": self.rollouts,
            "environments": self.environments,
            "problems": [
                {"problem": problem, "count": len(lines), "lines": lines} for problem, lines in self.problems.items()
            ],
        }


def check(
    rows: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="JSONL or Parquet file, or folder of a saved dataset; - is standard input."
        ),
    ],
    environment: Annotated[str | None, typer.Option(help="Environment for rows that name none.")] = None,
    config: Annotated[Path | None, typer.Option(help="Settings with more environments.")] = None,
    num_samples: Annotated[int, typer.Option(min=1, help="Rollouts per row, for rows that do not set it.")] = 1,
    split: Annotated[str | None, typer.Option(help="Dataset split to read.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Field to use as the input, in rows without one.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check every row against its environment, without a farm; exit with 1 if a row is invalid."""
    report = inspect(rows, environment=environment, config=config, num_samples=num_samples, split=split, prompt=prompt)
    if as_json:
        print_json(report.as_json())
    else:
        _show(report, rows.name)
    if report.problems or not report.rows:
        raise typer.Exit(FAILED)


def inspect(
    path: Path,
    *,
    environment: str | None = None,
    config: Path | None = None,
    num_samples: int = 1,
    split: str | None = None,
    prompt: str | None = None,
) -> RowsReport:
    """Read all of a file and check each row as the farm would. Raises Malformed if the file cannot be read."""
    from gym.client.datasets import scan, with_prompt
    from gym.config import load_settings
    from gym.environments.registry import load_registry
    from gym.environments.row_requests import check_request
    from gym.errors import Invalid
    from gym.task import read_header

    settings = load_settings(config)
    registry = load_registry(
        settings.environments, judges=settings.judges, agents=settings.agents, sandbox=settings.sandbox
    )
    report = RowsReport()
    first_lines: dict[str, int] = {}
    for line in scan(path, split=split):
        report.rows += 1
        if line.fault is not None:
            report.note("not JSON", line.number)
            continue
        row = line.row if prompt is None else with_prompt(line.row, prompt)
        try:
            header = read_header(row, row=0, default_environment=environment, default_samples=num_samples)
            report.environments[header.environment] = report.environments.get(header.environment, 0) + 1
            report.rollouts += header.num_samples
            registry.check_row(header.environment, row, row=0)
            check_request(row, agent=row.get("agent") or registry.get(header.environment).agent, row=0)
        except Invalid as error:
            report.note(_problem(error.message), line.number)
            continue
        if header.task_id is not None:
            if header.task_id in first_lines:
                report.note("its task_id is already used on an earlier line", line.number)
            first_lines.setdefault(header.task_id, line.number)
    return report


def _problem(message: str) -> str:
    """Return the error without the row's number, so that equal ones are counted together."""
    return message.removeprefix("row 0, ")


def _show(report: RowsReport, name: str) -> None:
    out = console()
    found = report.as_json()
    for problem, lines in sorted(report.problems.items(), key=lambda each: -len(each[1])):
        out.print(f"{len(lines):6}  {problem}  ({_lines(lines)})", style="red", markup=False)
    named = ", ".join(f"{environment} {count}" for environment, count in sorted(report.environments.items()))
    out.print(
        f"{name}: {report.rows} rows, {found['bad_rows']} of them invalid, "
        f"{report.rollouts} rollouts; {named or 'no row'}",
        markup=False,
    )


def _lines(lines: Collection[int]) -> str:
    shown = ", ".join(str(line) for line in list(lines)[:SHOWN_LINES])
    more = f", and {len(lines) - SHOWN_LINES} more" if len(lines) > SHOWN_LINES else ""
    return f"{'line' if len(lines) == 1 else 'lines'} {shown}{more}"
