"""What the proxy captured of an agent outside the workers, shown as a rollout."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from gym.jsontypes import JsonObject
from gym.results.record import call_json, pack_segment, segment_json, version_span
from gym.state.conversation import rebuild
from gym.wire.responses_reply import build_response


def captured_rollout(
    rollout_id: str, records: Sequence[JsonObject], *, conversation: bool, segments: bool
) -> JsonObject:
    """A rollout as far as its calls tell: how it ended nobody has said, and nothing has scored it.

    `records` are those of `gym.state.captures`, at least one.
    """
    trajectory = rebuild(records)
    shown: JsonObject = {
        "rollout_id": rollout_id,
        "state": "captured",
        "outcome": None,
        "stop_reason": trajectory.stop_reason,
        "reward": None,
        "policy_version": version_span(trajectory),
        "usage": dataclasses.asdict(trajectory.usage),
        "model_calls": len(trajectory.calls),
        "tool_calls": len(trajectory.tool_calls),
    }
    if conversation:
        shown |= {
            "responses_create_params": trajectory.params,
            "response": build_response(
                response_id=f"resp_{rollout_id}",
                created_at=records[0]["created_at"],
                model=str(trajectory.params.get("model", "")),
                output=trajectory.items,
                usage=trajectory.usage,
                request={name: value for name, value in trajectory.params.items() if name != "tools"},
                status="completed",
                incomplete_reason=None,
            ),
            "calls": [call_json(call) for call in trajectory.calls],
        }
    if segments:
        shown["segments"] = [segment_json(pack_segment(segment)) for segment in trajectory.segments.segments]
    return shown
