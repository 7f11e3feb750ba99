"""A task: one row of a batch, read and checked.

A row is NeMo Gym's row unchanged: `responses_create_params` (the request of the first model call), an environment
(`environment`, or NeMo Gym's `agent_ref`), and further fields for the verifier. The farm itself reads the fields in
`FARM_FIELDS`; the environment's row model checks the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from gym.errors import Invalid
from gym.ids import is_id
from gym.jsontypes import JsonObject

FARM_FIELDS = frozenset({"responses_create_params", "environment", "agent_ref", "task_id", "num_samples", "agent"})
MAX_SAMPLES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class RowHeader:
    """Fields of a row that dispatch needs, kept so that it need not read the row again."""

    task_id: str | None
    environment: str
    num_samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A row as a worker runs it. `params` is its `responses_create_params`, `data` the whole row."""

    task_id: str
    environment: str
    agent: str
    params: JsonObject
    data: JsonObject


def bad_row(row: int, field: str, message: str, *, line: int | None = None) -> Invalid:
    """Return the error for a row that is refused; `row` counts from 0, `line` from 1."""
    details: dict[str, Any] = {"row": row, "field": field}
    where = f"row {row}"
    if line is not None:
        details["line"] = line
        where = f"line {line}"
    return Invalid("invalid_row", f"{where}, field `{field}`: {message}", details)


def read_header(
    data: object, *, row: int, default_environment: str | None, default_samples: int, line: int | None = None
) -> RowHeader:
    """Check the farm's own fields of a row.

    Raises Invalid, which names the row and the field.
    """
    if not isinstance(data, dict):
        raise bad_row(row, "", f"a row is a JSON object, this is {type(data).__name__}", line=line)
    _check_params(data.get("responses_create_params"), row=row, line=line)
    task_id = data.get("task_id")
    if task_id is not None and not (isinstance(task_id, str) and is_id(task_id)):
        raise bad_row(row, "task_id", f"{_short(task_id)} is not an id ([A-Za-z0-9._:-], 1 to 128 long)", line=line)
    samples = data.get("num_samples", default_samples)
    if isinstance(samples, bool) or not isinstance(samples, int) or not 1 <= samples <= MAX_SAMPLES:
        raise bad_row(row, "num_samples", f"{_short(samples)} is not a whole number from 1 to {MAX_SAMPLES}", line=line)
    agent = data.get("agent")
    if agent is not None and not isinstance(agent, str):
        raise bad_row(row, "agent", f"{_short(agent)} is not the name of an agent", line=line)
    return RowHeader(
        task_id=task_id,
        environment=_environment(data, row=row, default=default_environment, line=line),
        num_samples=samples,
    )


def _check_params(params: object, *, row: int, line: int | None) -> None:
    if not isinstance(params, dict):
        raise bad_row(row, "responses_create_params", "it must be an object with `input`", line=line)
    items = params.get("input")
    if isinstance(items, str):
        return
    if not isinstance(items, list):  # an empty one is right where the agent or environment makes the first message
        raise bad_row(row, "responses_create_params.input", "it must be a text or a list of items", line=line)
    for number, item in enumerate(items):
        if not isinstance(item, dict):
            raise bad_row(
                row, f"responses_create_params.input.{number}", "each input item must be an object", line=line
            )
    tools = params.get("tools")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise bad_row(row, "responses_create_params.tools", "it must be a list of tool objects", line=line)


def _environment(data: JsonObject, *, row: int, default: str | None, line: int | None) -> str:
    name = data.get("environment")
    if name is None and isinstance(ref := data.get("agent_ref"), dict):
        name = ref.get("name")
    if name is None:
        name = default
    if name is None:
        raise bad_row(row, "environment", "neither the row nor the batch names an environment", line=line)
    if not isinstance(name, str) or not name:
        raise bad_row(row, "environment", f"{_short(name)} is not the name of an environment", line=line)
    return name


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


OWN_AGENTS = ("tool_loop", "single_turn", "stepped")  # the farm's own


AgentName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
