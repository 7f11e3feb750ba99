"""`python -m tests.chaos.main`: run seeds one after another, print a table, and write it as Markdown."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
from pathlib import Path

from tests.chaos.report import Report, percentile, table
from tests.chaos.run import RunOptions, run

COMMAND = "make chaos"


def main() -> int:
    """The exit status is 1 where anything was breached; the folder of such a run is kept."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.main", description=__doc__)
    parser.add_argument("--seed", type=int, nargs="+", default=list(range(1, 11)), help="which seeds [1 … 10]")
    parser.add_argument("--rollouts", type=int, default=2000, help="of each seed [2000]")
    parser.add_argument("--seconds", type=float, default=1200.0, help="most time for a seed's rollouts [1200]")
    parser.add_argument("--out", type=Path, help="write the table there too, as Markdown")
    given = parser.parse_args()
    reports = []
    for seed in given.seed:
        report = _run(RunOptions(seed=seed, rollouts=given.rollouts, seconds=given.seconds))
        reports.append(report)
        _say(_summary(report))
        if given.out is not None:
            given.out.write_text(table(reports))
    _say(f"\n{table(reports)}")
    return 1 if any(report.breaches for report in reports) else 0


def _run(options: RunOptions) -> Report:
    folder = Path(tempfile.mkdtemp(prefix=f"chaos-{options.seed}-"))
    report = asyncio.run(run(options, folder, _say))
    if report.breaches:
        _say(f"the logs are in {folder}")
    else:
        shutil.rmtree(folder)
    return report


def _summary(report: Report) -> str:
    figures = (
        f"{report.kills.total()} kills",
        *(f"{count} {outcome}" for outcome, count in report.outcomes.items()),
        f"{report.lost} lost",
        f"{report.duplicated} duplicated",
        f"at most {report.most_attempts} attempts",
        f"{report.polls} polls",
        f"{report.model_calls} model calls",
        f"the last {report.late_call_s:.2f} s after a cancellation",
        f"recovered in {percentile(report.recover_s, 0.5):.1f} s",
        f"p95 {percentile(report.recover_s, 0.95):.1f} s",
        f"took {report.took_s:.0f} s",
    )
    return "\n".join([f"seed {report.seed}: {', '.join(figures)}", *(f"  BREACH {text}" for text in report.breaches)])


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
