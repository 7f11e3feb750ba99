"""`python -m tests.chaos.main`: run seeds and scenarios one after another, and write tables of them as Markdown."""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.chaos.lost_writes import run_forgetful
from tests.chaos.report import Report, percentile, scenario_table, table
from tests.chaos.run import RunOptions, Trouble, run, strike_by_seed
from tests.chaos.scenarios import LOST_WRITES, SCENARIOS, LostWrites, Scenario

MOST_SECONDS = 1200.0
PAGE = """# Chaos

Written by `make chaos` on {cores} cores of {machine}, {python}; `load` is the machine's load average over five minutes
at the end of a run, with whatever else ran there.

A line for each seed: what was killed with `kill -9`, one process every 1 to 3 s, while rollouts of 2 to 6 turns ran;
how they ended; and how long after a kill the farm was ready and a further rollout had been recorded, further kills
included. {breaches}

{kills}
The same checks, with other troubles:

{scenarios}"""


def main() -> int:
    """The exit status is 1 where anything was breached; the folder of such a run is kept."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.main", description=__doc__)
    parser.add_argument("--seed", type=int, nargs="*", default=list(range(1, 11)), help="which seeds [1 … 10]")
    parser.add_argument("--rollouts", type=int, default=2000, help="of each seed [2000]")
    parser.add_argument("--seconds", type=float, default=MOST_SECONDS, help="most time for a seed's rollouts [1200]")
    parser.add_argument("--no-scenarios", action="store_true", help="seeds only")
    parser.add_argument("--out", type=Path, help="write the tables there too, as Markdown")
    given = parser.parse_args()
    seeds: list[Report] = []
    scenarios: list[tuple[str, Report]] = []
    for seed in given.seed:
        seeds.append(_run(RunOptions(seed=seed, rollouts=given.rollouts, seconds=given.seconds), strike_by_seed))
        _write(given.out, seeds, scenarios)
    for scenario in () if given.no_scenarios else SCENARIOS:
        scenarios.append((scenario.name, _play(scenario)))
        _write(given.out, seeds, scenarios)
    for losing in () if given.no_scenarios else LOST_WRITES:
        scenarios.append((losing.name, _forget(losing)))
        _write(given.out, seeds, scenarios)
    _say(f"\n{table(seeds)}\n{scenario_table(scenarios)}")
    return 1 if any(report.breaches for report in [*seeds, *(report for _, report in scenarios)]) else 0


def _run(options: RunOptions, trouble: Trouble) -> Report:
    return _report(options, lambda folder: run(options, folder, _say, trouble))


def _report(options: RunOptions, run_in: Callable[[Path], Coroutine[Any, Any, Report]]) -> Report:
    folder = Path(tempfile.mkdtemp(prefix=f"chaos-{options.seed}-"))
    report = asyncio.run(run_in(folder))
    if report.breaches:
        _say(f"the logs are in {folder}")
    else:
        shutil.rmtree(folder)
    _say(_summary(report))
    return report


def _play(scenario: Scenario) -> Report:
    _say(scenario.name)
    return _at_most(scenario.most_attempts, _run(scenario.options, scenario.trouble))


def _forget(losing: LostWrites) -> Report:
    _say(losing.name)
    options = losing.options
    return _at_most(
        losing.most_attempts,
        _report(options, lambda folder: run_forgetful(options, folder, _say, losing.forgetful, loses_s=losing.loses_s)),
    )


def _at_most(attempts: int, report: Report) -> Report:
    if report.most_attempts <= attempts:
        return report
    breach = f"it cost a rollout {report.most_attempts} attempts, at most {attempts} were expected"
    _say(f"  BREACH {breach}")
    return replace(report, breaches=(*report.breaches, breach))


def _write(path: Path | None, seeds: Sequence[Report], scenarios: Sequence[tuple[str, Report]]) -> None:
    """After each run, so that one which is broken off has left what it found."""
    if path is None:
        return
    breaches = [breach for report in [*seeds, *(report for _, report in scenarios)] for breach in report.breaches]
    page = PAGE.format(
        cores=os.cpu_count(),
        machine=f"{platform.system()} {platform.machine()}",
        python=f"Python {platform.python_version()}",
        breaches=f"**Breached: {'; '.join(breaches)}**" if breaches else "No check was breached.",
        kills=table(seeds),
        scenarios=scenario_table(scenarios),
    )
    path.write_text(page)


def _summary(report: Report) -> str:
    figures = (
        f"{report.kills.total()} kills",
        *(f"{count} {outcome}" for outcome, count in report.outcomes.items()),
        f"{report.lost} lost",
        f"{report.duplicated} duplicated",
        f"at most {report.most_attempts} attempts",
        *(f"{count} alarms of {kind}" for kind, count in report.alarms.items()),
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
