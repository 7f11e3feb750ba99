"""Bounds and conversion to plain data for values that environments return, applied before they are copied.

Texts that are too long are cut with a mark, as in a sandbox. Any other value that JSON cannot hold, or that takes too
many bytes, raises NotPlain: a fault of the environment.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from gym.environments.base import Step
from gym.plain import exact_json
from gym.plain.values import NotPlain, TooLarge, cut_text, number, shown, shown_in_part, truth

MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueBounds:
    """Most bytes of a tool's output or an observation, and most characters of a tool call's arguments."""

    output_bytes: int = 4 * MIB
    argument_chars: int = 1 * MIB


BOUNDS = ValueBounds()


def tool_output(result: object, bounds: ValueBounds) -> str:
    """Return a tool's result as the model reads it: a text unchanged, all else as JSON. Raises NotPlain."""
    if isinstance(result, str):
        return bounded_text(result, bounds)
    found, whole = shown_in_part(result, "its output", most_bytes=bounds.output_bytes)
    if whole:
        return bounded_text(exact_json.dumps(found).decode(), bounds)
    return _cut(json.dumps(found, ensure_ascii=False, separators=(",", ":")), bounds)  # orjson reserves far more memory


def bounded_text(text: str, bounds: ValueBounds) -> str:
    """Return the text, cut with a mark at its end if it is too long."""
    kept, whole = cut_text(text, bounds.output_bytes)
    return kept if whole else _cut(kept, bounds)


def plain_observation(value: object, bounds: ValueBounds) -> Any:
    """Return an observation as JSON can hold it. Raises NotPlain."""
    if isinstance(value, str):
        return bounded_text(value, bounds)
    try:
        return shown(value, "the observation", most_bytes=bounds.output_bytes)
    except TooLarge as error:
        raise TooLarge(f"{error}, and only a text can be cut (worker.max_tool_output_bytes)") from error


def plain_step(step: Step, bounds: ValueBounds) -> Step:
    """Return a step of plain values. Raises NotPlain."""
    info = {} if step.info is None else step.info
    if not isinstance(info, dict):
        raise NotPlain(f"info is of type {type(info).__name__}; expected a dict")
    return Step(
        observation=plain_observation(step.observation, bounds),
        reward=number(step.reward, "reward"),
        done=truth(step.done, "done"),
        truncated=truth(step.truncated, "truncated"),
        info=shown(info, "info", most_bytes=bounds.output_bytes) if info else info,
    )


def _cut(text: str, bounds: ValueBounds) -> str:
    mark = f"\n[cut here: the output is longer than {bounds.output_bytes} bytes]"
    return cut_text(text, max(0, bounds.output_bytes - len(mark)))[0] + mark
