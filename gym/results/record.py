"""Views of a result (JSON or msgpack) and its packed trajectory (msgpack).

A packed trajectory is `{v, response, calls, segments}`. A stepped environment adds `steps`, and an outside agent whose
first call differs from the row adds `params`. Token ids are little-endian int32, log-probabilities float32, the loss
mask uint8, each as raw bytes.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from typing import Any

import msgpack
import orjson

from gym.errors import ErrorKind, Stage
from gym.jsontypes import JsonObject
from gym.plain import exact_json, exact_msgpack
from gym.trajectory import ModelCall, Segment, StepTaken, Trajectory

VERSION = 1
_TRAINING = frozenset({"segments", "steps"})
_FULL = _TRAINING | {"response", "calls", "params"}


def pack_trajectory(
    response: JsonObject,
    calls: list[JsonObject],
    segments: list[Segment],
    steps: Sequence[StepTaken] = (),
    *,
    params: JsonObject | None = None,
) -> bytes:
    """Return a trajectory as it is stored; `params` are those of the first call if they differ from the row's."""
    kept: JsonObject = {
        "v": VERSION,
        "response": response,
        "calls": calls,
        "segments": [pack_segment(segment) for segment in segments],
    }
    if steps:
        kept["steps"] = [step_json(step) for step in steps]
    if params is not None:
        kept["params"] = params
    return exact_msgpack.packb(kept)


def step_json(step: StepTaken) -> JsonObject:
    """Return a step as it is stored and shown; an action that JSON cannot express is its `repr`."""
    try:
        action: Any = orjson.loads(orjson.dumps(step.action, default=repr, option=orjson.OPT_NON_STR_KEYS))
    except TypeError:
        action = _exact_action(step.action)
    return {
        "turn": step.turn,
        "action": action,
        "reward": step.reward,
        "done": step.done,
        "truncated": step.truncated,
    }


def _exact_action(action: object) -> Any:
    try:
        return exact_json.loads(exact_json.dumps(action, default=repr))
    except (TypeError, ValueError):
        return repr(action)


def unpack_trajectory(packed: bytes) -> JsonObject:
    """Return a trajectory that `pack_trajectory` packed, arrays still as bytes."""
    trajectory: JsonObject = exact_msgpack.unpackb(packed)
    return trajectory


def pack_segment(segment: Segment) -> JsonObject:
    """Return a segment with its arrays as bytes."""
    return {
        "token_ids": _little_endian(segment.token_ids),
        "loss_mask": bytes(segment.loss_mask),
        "logprobs": _little_endian(segment.logprobs),
        "policy_versions": [list(span) for span in segment.policy_versions],
    }


def unpack_segment(packed: JsonObject) -> Segment:
    """Return a segment that `pack_segment` packed."""
    return Segment(
        _array("i", packed["token_ids"]),
        bytearray(packed["loss_mask"]),
        _array("f", packed["logprobs"]),
        [(start, end, version) for start, end, version in packed["policy_versions"]],
    )


def _little_endian(values: array[Any]) -> bytes:
    if sys.byteorder == "big":
        values = values[:]
        values.byteswap()
    return values.tobytes()


def _array(code: str, raw: bytes) -> array[Any]:
    values: array[Any] = array(code)
    values.frombytes(raw)
    if sys.byteorder == "big":
        values.byteswap()
    return values


def segment_json(segment: JsonObject) -> JsonObject:
    """Return a packed segment with its arrays as lists of numbers."""
    return {
        "token_ids": _array("i", segment["token_ids"]).tolist(),
        "loss_mask": list(segment["loss_mask"]),
        "logprobs": _array("f", segment["logprobs"]).tolist(),
        "policy_versions": segment["policy_versions"],
    }


def add_trajectory(
    record: bytes, packed: bytes | None, row: bytes, *, full: bool, dropped: JsonObject | None = None
) -> bytes:
    """Return a light record with its segments; `full` adds the conversation and the calls.

    With `dropped` the record carries that mark, and they are null.
    """
    extra = _trajectory_fields(packed, row, full=full, dropped=dropped)
    if extra["segments"] is not None:
        extra["segments"] = [segment_json(segment) for segment in extra["segments"]]
    return record[:-1] + b"," + exact_json.dumps(extra)[1:]


def pack_record(record: bytes) -> bytes:
    """A record as msgpack."""
    return exact_msgpack.packb(exact_json.loads(record))


def pack_with_trajectory(
    record: bytes, packed: bytes | None, row: bytes, *, full: bool, dropped: JsonObject | None = None
) -> bytes:
    """Like `add_trajectory`, as msgpack; arrays of segments stay as they are stored."""
    known = exact_json.loads(record)
    if packed is None or dropped is not None:
        return exact_msgpack.packb(known | _trajectory_fields(packed, row, full=full, dropped=dropped))
    added = _packed_fields(packed, _FULL if full else _TRAINING)
    if full:
        given = added.pop("params", None)
        row_params = exact_json.loads(row).get("responses_create_params", {})
        added["responses_create_params"] = given or exact_msgpack.packb(row_params)
    packer = msgpack.Packer(autoreset=False)
    packer.pack_map_header(len(known) + len(added))
    parts: list[bytes] = [packer.bytes()]
    for name, value in known.items():
        parts += (exact_msgpack.packb(name), exact_msgpack.packb(value))
    for name, value in added.items():
        parts += (exact_msgpack.packb(name), value)
    return b"".join(parts)


def unreadable_record(record: bytes, row: bytes, message: str, *, full: bool) -> JsonObject:
    """Return the shown form of a result whose trajectory cannot be read: no tokens, and so no reward.

    `recorded` is its recorded outcome; the ledger counts that until the rollout is queued again.
    """
    known: JsonObject = exact_json.loads(record)
    error = known.get("error") or {}
    shown = known | {
        "outcome": "failed",
        "reward": None,
        "reward_components": {},
        "error": {
            "kind": ErrorKind.RESULT_UNREADABLE,
            "stage": Stage.COMMIT,
            "message": message,
            "retryable": True,
            "attempts": error.get("attempts") or [],
        },
        "recorded": {
            "outcome": known.get("outcome"),
            "reward": known.get("reward"),
            "error": {name: error[name] for name in ("kind", "message") if name in error} or None,
        },
        "trajectory": None,
        "segments": None,
    }
    if full:
        shown |= {"response": None, "responses_create_params": _row_params(row)}
    return shown


def _row_params(row: bytes) -> Any:
    try:
        return exact_json.loads(row).get("responses_create_params", {})
    except (ValueError, AttributeError):
        return None


def _packed_fields(packed: bytes, wanted: frozenset[str]) -> dict[str, bytes]:
    """Return fields of a packed trajectory, each still packed, which saves decoding them."""
    unpacker = msgpack.Unpacker(max_buffer_size=len(packed))
    unpacker.feed(packed)
    fields: dict[str, bytes] = {}
    for _ in range(unpacker.read_map_header()):
        name = unpacker.unpack()
        begins = unpacker.tell()
        unpacker.skip()
        if name in wanted:
            fields[name] = packed[begins : unpacker.tell()]
    if "segments" not in fields or not _is_array(fields["segments"][0]):
        raise ValueError("the trajectory has no segments")
    return fields


def _is_array(marker: int) -> bool:
    """Return whether a msgpack value that begins with this byte is an array."""
    return 0x90 <= marker <= 0x9F or marker in (0xDC, 0xDD)


def pack_page(records: list[bytes], **rest: object) -> bytes:
    """Return `{items, …}` around packed records."""
    packer = msgpack.Packer(autoreset=False)
    packer.pack_map_header(1 + len(rest))
    packer.pack("items")
    packer.pack_array_header(len(records))
    tail = [msgpack.packb(value) for pair in rest.items() for value in pair]
    return b"".join([packer.bytes(), *records, *tail])


def _trajectory_fields(packed: bytes | None, row: bytes, *, full: bool, dropped: JsonObject | None) -> JsonObject:
    """Return the fields that a trajectory adds to its record, the segments still packed."""
    extra: JsonObject = {}
    if full:
        extra |= {"responses_create_params": exact_json.loads(row).get("responses_create_params", {}), "response": None}
    extra["segments"] = [] if dropped is None else None
    if dropped is not None:
        extra["trajectory_dropped"] = dropped
    if packed is not None:
        trajectory = unpack_trajectory(packed)
        extra["segments"] = trajectory["segments"]
        if "steps" in trajectory:
            extra["steps"] = trajectory["steps"]
        if full:
            extra |= {"response": trajectory["response"], "calls": trajectory["calls"]}
            if "params" in trajectory:
                extra["responses_create_params"] = trajectory["params"]
    return extra


def version_span(trajectory: Trajectory | None) -> JsonObject | None:
    """Return the lowest and highest policy version of its calls, `None` if none is known."""
    calls = trajectory.calls if trajectory is not None else []
    seen = [
        version
        for call in calls
        for version in (call.facts.version_before, call.facts.version_after)
        if version is not None
    ]
    return {"min": min(seen), "max": max(seen)} if seen else None


def call_json(call: ModelCall) -> JsonObject:
    """Return a model call as `view=full` shows it."""
    facts = call.facts
    return {
        "turn": call.turn,
        "endpoint": facts.endpoint,
        "started_s": facts.started_s,
        "duration_s": facts.duration_s,
        "finish": facts.finish,
        "input_tokens": facts.usage.input_tokens,
        "output_tokens": facts.usage.output_tokens,
        "version_before": facts.version_before,
        "version_after": facts.version_after,
        "request_items": call.request_items,
        "reply_items": call.reply_items,
        "has_tokens": call.has_tokens,
    }
