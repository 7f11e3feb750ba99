"""Tables of figures for the terminal. Pure: values in, rich tables out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from gym.rollout import Outcome

if TYPE_CHECKING:
    from api.cli.client.summary import EnvironmentSummary, FailureSummary
    from gym.client import BatchStatus, EnvironmentInfo, Result

LOOK = {
    Outcome.SUCCEEDED: "green",
    Outcome.FAILED: "red",
    Outcome.CANCELLED: "yellow",
    Outcome.EXPIRED: "yellow",
}


def summary_table(lines: Sequence[EnvironmentSummary]) -> Table:
    """Return one row per environment; pass@1 beside pass@k if tasks have more than one sample."""
    ks = sorted({k for line in lines for k in line.pass_at} | {1})
    table = _table()
    table.add_column("environment", no_wrap=True)
    passes = [f"pass@{k}" for k in ks]
    for heading in ("rollouts", "succeeded", "mean\nreward", *passes, "turns", "tokens", "p50\ns", "p95\ns"):
        table.add_column(heading, justify="right", no_wrap=True)
    for line in lines:
        table.add_row(
            line.environment,
            str(line.rollouts),
            Text(str(line.succeeded), style="" if line.succeeded == line.rollouts else "red"),
            number(line.mean_reward, 3),
            *(number(line.pass_at.get(k), 3) for k in ks),
            number(line.turns, 1),
            number(line.tokens, 0),
            number(line.p50_s, 2),
            number(line.p95_s, 2),
        )
    return table


def failures_table(lines: Sequence[FailureSummary]) -> Table:
    """Failures by environment and kind, each with an example."""
    table = _table()
    for heading in ("environment", "failure"):
        table.add_column(heading, no_wrap=True)
    table.add_column("count", justify="right")
    table.add_column("for example", max_width=80)
    for line in lines:
        table.add_row(line.environment, line.kind, str(line.count), Text(line.example))
    return table


def results_table(results: Iterable[Result]) -> Table:
    """Return one row per rollout."""
    table = _table()
    for heading in ("rollout", "environment", "outcome"):
        table.add_column(heading, no_wrap=True)
    for heading in ("reward", "turns", "seconds"):
        table.add_column(heading, justify="right")
    table.add_column("why")
    for result in results:
        why = f"{result.error.kind}: {result.error.message}" if result.error else result.stop_reason or ""
        table.add_row(
            result.rollout_id,
            result.environment,
            Text(result.outcome, style=LOOK[result.outcome]),
            number(result.reward, 3),
            str(result.model_calls),
            number(result.timing.total_s, 2),
            Text(why),
        )
    return table


def environments_table(environments: Iterable[EnvironmentInfo]) -> Table:
    """Return one row per environment; one that cannot be loaded shows the reason."""
    table = _table()
    table.add_column("environment", no_wrap=True)
    table.add_column("tools")
    table.add_column("description")
    for each in environments:
        what = Text(f"cannot be loaded: {each.error}", style="red") if each.error else Text(each.description)
        table.add_row(each.name, ", ".join(tool_name(tool) for tool in each.tools), what)
    return table


def _table() -> Table:
    """Return a table narrow enough for the summary to fit 80 columns."""
    return Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")


def ledger_text(status: BatchStatus) -> str:
    """Return the nonzero counts of a ledger in one line, and the parked rollouts with the cause."""
    counts = status.ledger.as_dict()
    counts.pop("submitted")
    shown = [f"{name} {count}" for name, count in counts.items() if count]
    if status.parked.count:
        held_by = ", ".join(f"{reason['kind']} {reason['name']}" for reason in status.parked.reasons)
        shown.append(f"parked {status.parked.count} ({held_by})")
    return "  ".join(shown)


def parked_text(reason: Mapping[str, Any]) -> Text:
    """Explain why rollouts are parked."""
    text = f"rollouts are parked: {reason['kind']} {reason['name']} keeps failing: {reason['error']}"
    return Text(text, style="yellow")


def tool_name(tool: dict[str, object]) -> str:
    """Return a tool's name, from the Responses or the Chat Completions form."""
    function = tool.get("function")
    named = function if isinstance(function, dict) else tool
    return str(named.get("name", "?"))


def number(value: float | None, digits: int) -> str:
    """Format a number for a table; a dash if there is none."""
    return "-" if value is None else f"{value:.{digits}f}"
