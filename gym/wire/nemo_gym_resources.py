"""Requests to a NeMo Gym resources server and its answers, except those of single tools. Pure.

Source: `nemo_gym/base_resources_server.py`, `judge.py` and `failure_kinds.py` of NVIDIA-NeMo/Gym 0.7.

Invariant: an answer that says that its reward measures nothing (`mask_sample`, a failure class) never becomes one.
"""

from __future__ import annotations

import math
import re
from typing import Any

from gym.jsontypes import JsonObject
from gym.reward import Reward
from gym.trajectory import Trajectory
from gym.wire.responses.reply import build_response

ROUTES = frozenset({"seed_session", "close_session", "verify", "aggregate_metrics", "reverify_mode", "mcp", "stats"})
"""The server's own, which no tool may be named like."""

MOST_COMPONENTS = 64
_TOOL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_PASSING = ("judge_failed", "transport_", "provider_", "session_", "kill_")
_NOT_COMPONENTS = frozenset({"reward", "mask_sample"})
_INCOMPLETE = {
    "max_tokens": "max_output_tokens",
    "context_overflow": "max_output_tokens",
    "content_filter": "content_filter",
}


class Unscored(ValueError):
    """The answer has no reward; `passing` says that an outage is the cause, not the task."""

    def __init__(self, message: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing


def is_tool(name: str) -> bool:
    """Return whether a route of that name can belong to a tool."""
    return _TOOL.fullmatch(name) is not None and name not in ROUTES


def verify_request(row: JsonObject, trajectory: Trajectory, *, response_id: str, created_at: float) -> JsonObject:
    """The body of `POST /verify`: the row as it is, and the episode as one response."""
    reason = _INCOMPLETE.get(trajectory.stop_reason or "")
    response = build_response(
        response_id=response_id,
        created_at=created_at,
        model=str(trajectory.params.get("model") or ""),
        output=trajectory.items,
        usage=trajectory.usage,
        request=trajectory.params,
        status="incomplete" if reason else "completed",
        incomplete_reason=reason,
    )
    return {**row, "response": response}


def close_request(session_id: str) -> JsonObject:
    """The body of `POST /close_session`; the server knows the session by its cookie."""
    return {"resources_session_id": session_id, "episode_id": {"rollout_id": session_id, "attempt": 0}}


def reward_of(answer: Any, row: JsonObject) -> Reward:
    """The reward of a verify answer; its components, and every other number that the verifier added to the row.

    Raises Unscored.
    """
    if not isinstance(answer, dict):
        raise Unscored(f"its answer is no object but {type(answer).__name__}")
    kind = answer.get("failure_kind") or answer.get("_ng_failure_class")
    if answer.get("mask_sample") is True or answer.get("_ng_failure_class"):
        why = answer.get("failure_reason") or answer.get("_ng_failure_judge_error") or "no reason given"
        raise Unscored(f"{kind or 'mask_sample'}: {str(why)[:1000]}", passing=str(kind or "").startswith(_PASSING))
    reward = _number(answer.get("reward"))
    if reward is None:
        raise Unscored(f"its `reward` is {str(answer.get('reward'))[:60]}, not a finite number")
    given = answer.get("reward_components")
    components = {name: answer[name] for name in answer.keys() - row.keys() - _NOT_COMPONENTS}
    components |= given if isinstance(given, dict) else {}
    numbers = {name: number for name, value in components.items() if (number := _number(value)) is not None}
    return Reward(reward, dict(sorted(numbers.items())[:MOST_COMPONENTS]))


def said(body: str) -> str:
    """Return the text of an error answer, shortened: FastAPI's `detail`, else the text itself."""
    return body if len(body) <= 1000 else f"{body[:1000]}…"


def _number(value: Any) -> float | None:
    """A finite number, also of a bool."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
