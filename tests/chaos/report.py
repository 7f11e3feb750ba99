"""Report of a run: figures, breaches, and the table of several runs. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from api.bench.figures import percentile
from tests.chaos.invariants import OUTCOMES
from tests.chaos.observations import Kill
from tests.chaos.schedule import KINDS, Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A run of one seed. `recover_s` has a time for each kill; see `recovery_times`."""

    seed: int
    kills: Counter[Kind]
    rollouts: int
    outcomes: Counter[str]
    lost: int
    duplicated: int
    most_attempts: int
    alarms: dict[str, int]
    """Alarms of the farm's own check, by kind, repaired faults included."""
    polls: int
    model_calls: int
    late_call_s: float
    recover_s: tuple[float, ...]
    took_s: float
    load: float
    breaches: tuple[str, ...]


def recovery_times(
    kills: Sequence[Kill], ready: Sequence[tuple[float, bool]], recorded_at: Sequence[float]
) -> tuple[float, ...]:
    """Seconds from each kill until /readyz has said 200 and a further rollout has been recorded, whichever is later.

    Kills go on meanwhile, so a time covers those that followed as well. After the last rollout readiness alone counts.
    """
    good = sorted(at for at, is_ready in ready if is_ready)
    recorded = sorted(recorded_at)
    times = []
    for kill in kills:
        ready_at, ended_at = _next(good, kill.at), _next(recorded, kill.at)
        seen = [at for at in (ready_at, ended_at) if at is not None]
        if ready_at is not None:
            times.append(max(seen) - kill.at)
    return tuple(times)


def table(reports: Sequence[Report]) -> str:
    """Markdown, a line for each seed and one for all of them."""
    head = ["seed", "kills", *KINDS, "rollouts", *OUTCOMES, "lost", "duplicated", "most attempts", "recover p50 s"]
    head += ["p95 s", "minutes", "load"]
    lines = [_cells(report, str(report.seed)) for report in reports]
    if len(reports) > 1:
        lines.append(_cells(together(reports), "**all**"))
    return "\n".join([_row(head), _row(["--:"] * len(head)), *map(_row, lines)]) + "\n"


def scenario_table(reports: Sequence[tuple[str, Report]]) -> str:
    """Markdown, a line for each trouble that is no kill."""
    head = ["trouble", "rollouts", *OUTCOMES, "lost", "duplicated", "most attempts", "minutes", "load"]
    lines = [
        [
            name,
            str(report.rollouts),
            *(str(report.outcomes[outcome]) for outcome in OUTCOMES),
            str(report.lost),
            str(report.duplicated),
            str(report.most_attempts),
            f"{report.took_s / 60:.1f}",
            f"{report.load:.0f}",
        ]
        for name, report in reports
    ]
    return "\n".join([_row(head), _row(["---"] + ["--:"] * (len(head) - 1)), *map(_row, lines)]) + "\n"


def together(reports: Sequence[Report]) -> Report:
    """Several runs as one."""
    kills: Counter[Kind] = Counter()
    outcomes: Counter[str] = Counter()
    for report in reports:
        kills += report.kills
        outcomes += report.outcomes
    return Report(
        seed=0,
        kills=kills,
        rollouts=sum(report.rollouts for report in reports),
        outcomes=outcomes,
        lost=sum(report.lost for report in reports),
        duplicated=sum(report.duplicated for report in reports),
        most_attempts=max(report.most_attempts for report in reports),
        alarms=dict(sum((Counter(report.alarms) for report in reports), Counter[str]())),
        polls=sum(report.polls for report in reports),
        model_calls=sum(report.model_calls for report in reports),
        late_call_s=max(report.late_call_s for report in reports),
        recover_s=tuple(time for report in reports for time in report.recover_s),
        took_s=sum(report.took_s for report in reports),
        load=sum(report.load for report in reports) / len(reports),
        breaches=tuple(breach for report in reports for breach in report.breaches),
    )


def _cells(report: Report, name: str) -> list[str]:
    return [
        name,
        str(report.kills.total()),
        *(str(report.kills[kind]) for kind in KINDS),
        str(report.rollouts),
        *(str(report.outcomes[outcome]) for outcome in OUTCOMES),
        str(report.lost),
        str(report.duplicated),
        str(report.most_attempts),
        f"{percentile(report.recover_s, 0.5):.1f}",
        f"{percentile(report.recover_s, 0.95):.1f}",
        f"{report.took_s / 60:.1f}",
        f"{report.load:.0f}",
    ]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _next(times: Sequence[float], after: float) -> float | None:
    place = bisect_right(times, after)
    return times[place] if place < len(times) else None
