"""From how an attempt ended to what is stored: the record, the packed trajectory, and the environment's sums."""

from __future__ import annotations

import time

import orjson

from gym.agents.replay import MOST_BYTES, pack, recorded
from gym.episode import EpisodeResult
from gym.errors import RolloutError
from gym.jsontypes import JsonObject
from gym.results.record import call_json, pack_trajectory, version_span
from gym.results.storable import storable_text
from gym.reward import PASS_REWARD
from gym.rollout import StopReason
from gym.state.ledger.result_records import read_tries, rfc3339
from gym.trajectory import Usage
from gym.wire.responses.reply import build_response
from workers.rollouts.runner import RunningRollout


def error_line(running: RunningRollout, error: RolloutError, worker: str) -> bytes:
    """One line of a rollout's attempts."""
    return orjson.dumps(
        {
            "attempt": running.claim.attempt,
            "worker": worker,
            "kind": error.kind,
            "message": storable_text(error.message),
            "retryable": error.retryable,
        }
    )


def record(running: RunningRollout, finished: EpisodeResult, worker: str) -> bytes:
    """The result as API.md shows it, `view=light`."""
    claim, rollout = running.claim, running.rollout
    trajectory = finished.trajectory
    usage = trajectory.usage if trajectory is not None else Usage()
    return orjson.dumps(
        {
            "rollout_id": str(rollout),
            "batch_id": rollout.batch_id,
            "run": running.spec.run,
            "group_id": rollout.group_id,
            "task_id": claim.task_id,
            "sample_index": rollout.sample,
            "attempt": claim.attempt,
            "environment": claim.environment,
            "outcome": "failed" if finished.error is not None else "succeeded",
            "stop_reason": finished.stop_reason,
            "error": _error(running, finished, worker),
            "reward": finished.reward.value if finished.reward is not None else None,
            "reward_components": finished.reward.components if finished.reward is not None else {},
            "judge": finished.ask.questions[0].judge if finished.ask is not None else None,
            "verdicts": [],
            "policy_version": version_span(trajectory),
            "usage": usage,
            "model_calls": len(trajectory.calls) if trajectory is not None else 0,
            "tool_calls": len(trajectory.tool_calls) if trajectory is not None else 0,
            "timing": finished.timing,
            "worker": worker,
            "finished_at": rfc3339(claim.claimed_at + int((finished.timing.total_s - running.earlier_s) * 1000)),
        }
    )


def bare_record(running: RunningRollout, error: RolloutError, worker: str) -> bytes:
    """The record of a failed attempt from nothing but its claim: what is stored where all else cannot be."""
    claim, rollout = running.claim, running.rollout
    return orjson.dumps(
        {
            "rollout_id": str(rollout),
            "batch_id": rollout.batch_id,
            "run": running.spec.run,
            "group_id": rollout.group_id,
            "task_id": claim.task_id,
            "sample_index": rollout.sample,
            "attempt": claim.attempt,
            "environment": claim.environment,
            "outcome": "failed",
            "stop_reason": StopReason.ERROR,
            "error": {**orjson.loads(error_line(running, error, worker)), "stage": error.stage, "attempts": []},
            "reward": None,
            "reward_components": {},
            "judge": None,
            "verdicts": [],
            "policy_version": None,
            "usage": Usage(),
            "model_calls": 0,
            "tool_calls": 0,
            "timing": dict.fromkeys(("queued_s", "environment_s", "model_s", "tool_s", "judge_s", "total_s"), 0.0),
            "worker": worker,
            "finished_at": rfc3339(claim.claimed_at),
        }
    )


def _error(running: RunningRollout, finished: EpisodeResult, worker: str) -> JsonObject | None:
    error = finished.error
    if error is None:
        return None
    attempts = read_tries(running.claim.tries)
    attempts.append(orjson.loads(error_line(running, error, worker)))
    return {
        "kind": error.kind,
        "stage": error.stage,
        "message": storable_text(error.message),
        "retryable": error.retryable,
        "attempts": attempts,
    }


def packed_trajectory(running: RunningRollout, finished: EpisodeResult) -> bytes | None:
    """The trajectory as it is stored, `None` where the episode never began."""
    trajectory = finished.trajectory
    if trajectory is None:
        return None
    cut = {
        StopReason.MAX_TOKENS: "max_output_tokens",
        StopReason.CONTEXT_OVERFLOW: "max_output_tokens",
        StopReason.CONTENT_FILTER: "content_filter",
    }.get(finished.stop_reason)
    params = trajectory.params
    is_rows = running.episode is None or params is running.episode.task.params
    response = build_response(
        response_id=f"resp_{running.rollout}",
        created_at=running.claim.claimed_at / 1000,
        model=str(params.get("model", "")),
        output=trajectory.items,
        usage=trajectory.usage,
        # tools of a captured call are in the form of chat requests
        request=params if is_rows else {name: value for name, value in params.items() if name != "tools"},
        status="incomplete" if cut else "completed",
        incomplete_reason=cut,
    )
    calls = [call_json(call) for call in trajectory.calls]
    segments = trajectory.segments.segments
    return pack_trajectory(response, calls, segments, trajectory.steps, params=None if is_rows else params)


def packed_calls(running: RunningRollout, *, most_bytes: int) -> bytes:
    """The model calls of a rollout that is handed back, as its next claim gets them; empty where there are none."""
    if running.episode is None:
        return b""
    return pack(
        recorded(running.episode),
        attempt=running.claim.attempt,
        elapsed_s=time.monotonic() - running.episode.started,
        most_bytes=min(most_bytes, MOST_BYTES),
    )


def sums(finished: EpisodeResult) -> dict[str, float]:
    """What this rollout adds to its environment's sums, zeros left out; the divisor of the means is `run`."""
    trajectory = finished.trajectory
    added: dict[str, float] = {"run": 1}
    if finished.reward is not None:
        added |= {"scored": 1, "reward": finished.reward.value, "passed": int(finished.reward.value >= PASS_REWARD)}
    if trajectory is not None:
        added |= {
            "turns": len(trajectory.calls),
            "tool_calls": len(trajectory.tool_calls),
            "input_tokens": trajectory.usage.input_tokens,
            "output_tokens": trajectory.usage.output_tokens,
        }
    timing = finished.timing
    added |= {
        "queued_s": timing.queued_s,
        "environment_s": timing.environment_s,
        "model_s": timing.model_s,
        "tool_s": timing.tool_s,
        "judge_s": timing.judge_s,
        "total_s": timing.total_s,
    }
    return {name: value for name, value in added.items() if value}
