"""Follow a batch to its end: progress on the terminal, results into a file, a summary at the end."""

from __future__ import annotations

import dataclasses
from typing import IO, TYPE_CHECKING, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from api.cli.client.tables import failures_table, ledger_text, parked_text, summary_table
from gym.plain import exact_json

if TYPE_CHECKING:
    from rich.console import Console

    from api.cli.client.summary import Summary
    from gym.client import Batch, BatchStatus, View

POLL_S = 1.0


def follow(
    batch: Batch, summary: Summary, *, console: Console, out: IO[bytes] | None = None, view: View = "light"
) -> BatchStatus:
    """Read results as they finish into `summary` and, as JSON lines, into `out`, until the batch is done.

    Return the final status of the batch. Ctrl-C leaves the batch running.
    """
    columns = (
        TextColumn("rollouts"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    reader = batch.results(view=view)
    told: set[tuple[str, str]] = set()
    with Progress(*columns, console=console, refresh_per_second=4) as progress:
        bar = progress.add_task("", total=None)
        while True:
            for result in reader.page(wait_s=POLL_S):
                summary.add(result)
                if out is not None:
                    out.write(exact_json.dumps(result.raw) + b"\n")
            if out is not None:
                out.flush()
            status = batch.status()
            for reason in status.parked.reasons:
                if (reason["kind"], reason["since"]) not in told:
                    told.add((reason["kind"], reason["since"]))
                    progress.console.print(parked_text(reason))
            progress.update(
                bar, completed=status.ledger.ended, total=status.ledger.submitted, description=ledger_text(status)
            )
            if reader.done:
                return status


def print_summary(summary: Summary, console: Console) -> None:
    """Print the table of environments, and the failures below it."""
    console.print(summary_table(summary.environments()))
    if failures := summary.failures():
        console.print()
        console.print(failures_table(failures))


def summary_json(summary: Summary) -> dict[str, Any]:
    """Return the same figures for programs."""
    return {
        "environments": [
            dataclasses.asdict(line) | {"pass_at": {str(k): value for k, value in line.pass_at.items()}}
            for line in summary.environments()
        ],
        "failures": [dataclasses.asdict(line) for line in summary.failures()],
    }
