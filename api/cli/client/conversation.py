"""One rollout formatted for reading. Pure: its JSON in, a rich renderable out."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from api.cli.client.tables import number
from gym.jsontypes import JsonObject

MAX_TEXT = 4000
FACTS = (
    "rollout_id",
    "environment",
    "task_id",
    "outcome",
    "state",
    "stop_reason",
    "attempt",
    "model_calls",
    "tool_calls",
)


def conversation(rollout: JsonObject) -> RenderableType:
    """Return the facts, the conversation in order, and the failure if there is one."""
    shown: list[RenderableType] = [_facts(rollout)]
    params = rollout.get("responses_create_params") or {}
    asked = params.get("input") or []
    if isinstance(asked, str):
        asked = [{"role": "user", "content": asked}]
    response = rollout.get("response") or {}
    shown += [_item(item) for item in [*asked, *(response.get("output") or [])] if isinstance(item, dict)]
    if calls := rollout.get("calls"):
        shown += [_calls(calls), *_call_errors(calls)]
    if dropped := rollout.get("trajectory_dropped"):
        shown.append(Text(f"the trajectory was dropped at {dropped['at']} ({dropped['reason']})", style="dim"))
    if error := rollout.get("error"):
        shown.append(_error(error))
    return Group(*shown)


def _calls(calls: list[JsonObject]) -> Table:
    """List the model calls, one per line; `saw` and `gave` count items of the conversation above."""
    table = Table(title="model calls", title_justify="left", box=None)
    for name in ("turn", "endpoint", "at s", "took s", "saw", "gave", "in", "out", "finish", "version"):
        table.add_column(name, justify="left" if name in ("endpoint", "finish") else "right")
    for call in calls:
        before, after = call.get("version_before"), call.get("version_after")
        versions = {str(version) for version in (before, after) if version is not None}
        table.add_row(
            str(call.get("turn")),
            str(call.get("endpoint") or ""),
            number(call.get("started_s"), 2),
            number(call.get("duration_s"), 2),
            str(call.get("request_items")),
            str(call.get("reply_items")),
            str(call.get("input_tokens")),
            str(call.get("output_tokens")),
            str(call.get("finish")),
            "-".join(sorted(versions)),
            style="red" if call.get("error") else "",
        )
    return table


def _call_errors(calls: list[JsonObject]) -> list[RenderableType]:
    """List the errors of calls, consecutive equal ones once."""
    shown: list[RenderableType] = []
    for (kind, status, message), run in groupby(calls, key=_error_of):
        if kind is None:
            continue
        failed = list(run)
        times = f" ({len(failed)} times)" if len(failed) > 1 else ""
        answered = f", answered {status}" if status else ""
        shown.append(_panel(f"call of turn {failed[0].get('turn')}: {kind}{answered}{times}", message, style="red"))
    return shown


def _error_of(call: JsonObject) -> tuple[str | None, int | None, str]:
    error = call.get("error") or {}
    return error.get("kind"), error.get("status"), str(error.get("message", ""))


def _facts(rollout: JsonObject) -> Table:
    table = Table(show_header=False, box=None)
    for name in FACTS:
        if rollout.get(name) is not None:
            table.add_row(Text(name, style="dim"), Text(str(rollout[name])))
    reward = number(rollout.get("reward"), 3)
    components = rollout.get("reward_components") or {}
    parts = ", ".join(f"{name} {number(value, 3)}" for name, value in components.items())
    table.add_row(Text("reward", style="dim"), Text(f"{reward}  {parts}".rstrip()))
    usage = rollout.get("usage") or {}
    table.add_row(
        Text("tokens", style="dim"), f"{usage.get('input_tokens', 0)} in, {usage.get('output_tokens', 0)} out"
    )
    timing = rollout.get("timing") or {}
    seconds = "  ".join(f"{name.removesuffix('_s')} {number(value, 2)}" for name, value in timing.items())
    table.add_row(Text("seconds", style="dim"), seconds)
    return table


def _item(item: JsonObject) -> RenderableType:
    match item.get("type", "message"):
        case "message":
            return _panel(str(item.get("role", "?")), _text(item.get("content")))
        case "reasoning":
            return _panel("reasoning", _text(item.get("summary")) or _text(item.get("content")), style="dim")
        case "function_call":
            return _panel("tool call", f"{item.get('name')}({item.get('arguments')})", style="cyan")
        case "function_call_output":
            return _panel("tool answer", _text(item.get("output")), style="cyan")
        case kind:
            return _panel(str(kind), str(item))


def _error(error: JsonObject) -> RenderableType:
    lines = [f"{error.get('kind')} at {error.get('stage')}: {error.get('message')}"]
    lines += [
        f"attempt {each.get('attempt')} on {each.get('worker')}: {each.get('kind')}: {each.get('message')}"
        for each in error.get("attempts") or ()
    ]
    return _panel("failed", "\n".join(lines), style="red")


def _panel(title: str, text: str, *, style: str = "none") -> Panel:
    cut = text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}… ({len(text)} characters; --json shows all)"
    return Panel(Text(cut), title=title, title_align="left", border_style=style)


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(str(part.get("text", part)) if isinstance(part, dict) else str(part) for part in content)
    return "" if content is None else str(content)
