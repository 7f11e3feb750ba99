"""View of an outside agent's captured calls as a rollout."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from gym.captures.conversation import chain, input_items, rebuild, reply_items
from gym.jsontypes import JsonObject
from gym.results.record import call_json, pack_segment, segment_json, version_span
from gym.trajectory import Trajectory
from gym.wire.responses.reply import build_response

_Ranges = list[list[int]]


def captured_rollout(
    rollout_id: str,
    records: Sequence[JsonObject],
    failures: Sequence[JsonObject],
    *,
    conversation: bool,
    segments: bool,
) -> JsonObject:
    """Return a rollout as far as its calls show it; outcome and reward are unknown.

    `records` and `failures` are those of `gym.captures.recording`, at least one of either.
    """
    trajectory = rebuild(records) if records else Trajectory(params={**(failures[0]["settings"] or {}), "input": []})
    shown: JsonObject = {
        "rollout_id": rollout_id,
        "state": "captured",
        "outcome": None,
        "stop_reason": trajectory.stop_reason,
        "reward": None,
        "policy_version": version_span(trajectory),
        "usage": dataclasses.asdict(trajectory.usage),
        "model_calls": len(trajectory.calls),
        "failed_calls": len(failures),
        "tool_calls": len(trajectory.tool_calls),
    }
    if conversation:
        shown |= {
            "responses_create_params": trajectory.params,
            "response": build_response(
                response_id=f"resp_{rollout_id}",
                created_at=records[0]["created_at"] if records else 0.0,
                model=str(trajectory.params.get("model", "")),
                output=trajectory.items,
                usage=trajectory.usage,
                request={name: value for name, value in trajectory.params.items() if name != "tools"},
                status="completed",
                incomplete_reason=None,
            ),
            "calls": _calls(trajectory, records, failures),
        }
    if segments:
        shown["segments"] = [segment_json(pack_segment(segment)) for segment in trajectory.segments.segments]
    return shown


def _calls(trajectory: Trajectory, records: Sequence[JsonObject], failures: Sequence[JsonObject]) -> list[JsonObject]:
    """Return every call in the order in which they began.

    `request_ranges` are the items of its request, as [start, end) of the rollout's input followed by its output.
    Reasoning is included whether the client sent it back or not. A call with other settings than the first has
    `settings`.
    """
    settings = {record["settings_digest"]: record["settings"] for record in records if record["settings"] is not None}
    said = _Said()
    calls: list[JsonObject] = []
    for call, record in zip(trajectory.calls, records, strict=True):
        shown = call_json(call) | {
            "call_id": record["call_id"],
            "dialect": record["dialect"],
            "request_ranges": said.add(record),
        }
        if record["overflow"] is not None:
            shown["error"] = {"kind": record["finish"], "message": record["overflow"], "status": None}
        if record["settings_digest"] != records[0]["settings_digest"]:
            shown["settings"] = settings.get(record["settings_digest"])
        calls.append(shown)
    calls += [_failed(failure, said) for failure in failures]
    return sorted(calls, key=lambda call: float(call["started_s"]))


class _Said:
    """Positions of each known prefix of a conversation in the items of a rollout, as ordered ranges."""

    def __init__(self) -> None:
        self._items = 0
        self.ranges: dict[bytes, _Ranges] = {b"": []}

    def add(self, record: JsonObject) -> _Ranges | None:
        """Add an answered call and return the ranges of its request."""
        at, ranges = record["after"], self.ranges.get(record["after"])
        for message in record["messages"]:
            [at] = chain([message], at)
            ranges = self._go_on(ranges, at, len(input_items([message], id_prefix="")))
        if record["completion"] is not None:
            reply = record["completion"]["choices"][0]["message"]
            self._go_on(ranges, chain([reply], at)[0], len(reply_items(record)))
        return ranges

    def _go_on(self, ranges: _Ranges | None, digest: bytes, count: int) -> _Ranges | None:
        start = self._items
        self._items += count
        if ranges is None:
            return None
        joined = bool(ranges) and ranges[-1][1] == start
        ranges = [*ranges[:-1], [ranges[-1][0], self._items]] if joined else [*ranges, [start, self._items]]
        return self.ranges.setdefault(digest, ranges)


def _failed(failure: JsonObject, known: _Said) -> JsonObject:
    """Return a failed call: `request` are its items that no answered call contains.

    They are null if an equal call failed before. Its turn is the one that it would have been.
    """
    said = failure["messages"]
    return {
        "turn": failure["turn"],
        "call_id": failure["call_id"],
        "dialect": failure["dialect"],
        "endpoint": failure["endpoint"],
        "started_s": failure["started_s"],
        "duration_s": failure["duration_s"],
        "finish": "failed",
        "error": failure["error"],
        "input_tokens": 0,
        "output_tokens": 0,
        "version_before": None,
        "version_after": None,
        "request_items": failure["request_items"],
        "request_ranges": known.ranges.get(failure["after"]),
        "request": input_items(said, id_prefix=failure["call_id"]) if failure["settings"] is not None else None,
        "reply_items": 0,
        "has_tokens": False,
    }
