"""Conversion of an ended attempt to stored values: the record, the packed trajectory, and the environment's sums."""

from __future__ import annotations

import time

import orjson

from gym.agents.replay import MOST_BYTES, pack, recorded
from gym.episode import EpisodeResult
from gym.errors import RolloutError
from gym.results.record import call_json, pack_trajectory, version_span
from gym.results.result import (
    ResultFailure,
    RolloutIdentity,
    RolloutResult,
    failed_attempt,
    identity,
    rfc3339,
)
from gym.results.storable import storable_text
from gym.reward import PASS_REWARD
from gym.rollout import Outcome, StopReason
from gym.state.ledger.result_records import read_tries
from gym.trajectory import Usage
from gym.wire.responses.reply import build_response
from workers.rollouts.runner import RunningRollout


def error_line(running: RunningRollout, error: RolloutError, worker: str) -> bytes:
    """Return one JSON line of a rollout's failed attempts."""
    message = storable_text(error.message)
    return orjson.dumps(failed_attempt(running.claim.attempt, worker, error.kind, message, retryable=error.retryable))


def record(running: RunningRollout, finished: EpisodeResult, worker: str) -> bytes:
    """Return the record of an attempt that ended."""
    claim, error, reward = running.claim, finished.error, finished.reward
    trajectory = finished.trajectory
    failure = None
    if error is not None:
        tries = [*read_tries(claim.tries), orjson.loads(error_line(running, error, worker))]
        failure = ResultFailure.of(error, tries)
    return RolloutResult(
        **_identity(running),
        attempt=claim.attempt,
        outcome=Outcome.FAILED if error is not None else Outcome.SUCCEEDED,
        stop_reason=finished.stop_reason,
        error=failure,
        reward=reward.value if reward is not None else None,
        reward_components=reward.components if reward is not None else {},
        judge=finished.ask.questions[0].judge if finished.ask is not None else None,
        policy_version=version_span(trajectory),
        usage=trajectory.usage if trajectory is not None else Usage(),
        model_calls=len(trajectory.calls) if trajectory is not None else 0,
        tool_calls=len(trajectory.tool_calls) if trajectory is not None else 0,
        timing=finished.timing,
        worker=worker,
        finished_at=rfc3339(claim.claimed_at + int((finished.timing.total_s - running.earlier_s) * 1000)),
    ).as_json()


def bare_record(running: RunningRollout, error: RolloutError, worker: str) -> bytes:
    """Return a failed record that is built from the claim alone, for when a fuller one cannot be stored."""
    return RolloutResult(
        **_identity(running),
        attempt=running.claim.attempt,
        outcome=Outcome.FAILED,
        stop_reason=StopReason.ERROR,
        error=ResultFailure.of(error, []),
        worker=worker,
        finished_at=rfc3339(running.claim.claimed_at),
    ).as_json()


def _identity(running: RunningRollout) -> RolloutIdentity:
    claim = running.claim
    run = running.spec.run or claim.batch_id
    return identity(running.rollout, run=run, task_id=claim.task_id, environment=claim.environment)


def packed_trajectory(running: RunningRollout, finished: EpisodeResult) -> bytes | None:
    """Return the trajectory as it is stored, `None` if the episode never began."""
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
    """Return the model calls of a rollout that is handed back, for its next claim to replay; empty without any."""
    if running.episode is None:
        return b""
    return pack(
        recorded(running.episode),
        attempt=running.claim.attempt,
        elapsed_s=time.monotonic() - running.episode.started,
        most_bytes=min(most_bytes, MOST_BYTES),
    )


def sums(finished: EpisodeResult) -> dict[str, float]:
    """Return this rollout's additions to its environment's sums, without zeros; means are divided by `run`."""
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
    added |= finished.timing.as_dict()
    return {name: value for name, value in added.items() if value}
