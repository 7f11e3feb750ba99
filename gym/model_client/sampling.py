"""Sampling parameters that the policy pins: its model and its `sampling_overrides`."""

from __future__ import annotations

from gym.jsontypes import JsonObject
from gym.policy import PolicySpec
from gym.wire.checks import as_object

_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")  # synonyms


def pinned(body: JsonObject, spec: PolicySpec) -> JsonObject:
    """Return a chat request with the policy's model and `sampling_overrides`, which take precedence over the caller.

    The overrides are fields of Chat Completions; `max_output_tokens` is treated as `max_tokens`. A null removes the
    field from the request. Streaming is off.
    """
    request = dict(body)
    for name, value in spec.sampling_overrides.items():
        if name in _LIMITS:
            for other in _LIMITS:
                request.pop(other, None)
        wire_name = "max_tokens" if name == "max_output_tokens" else name
        if value is None:
            request.pop(wire_name, None)
        else:
            request[wire_name] = value
    request["model"] = spec.model
    request.pop("stream", None)
    request.pop("stream_options", None)
    return request


def pinned_response(body: JsonObject, spec: PolicySpec, *, stream: bool) -> JsonObject:
    """Do the same for a Responses request, with its names for the token limit and the reasoning effort.

    Nothing is stored at the server (`store`).
    """
    request = dict(body)
    for name, value in spec.sampling_overrides.items():
        if name == "reasoning_effort":
            request["reasoning"] = {**as_object(body.get("reasoning") or {}, "reasoning"), "effort": value}
            continue
        wire_name = "max_output_tokens" if name in _LIMITS else name
        if value is None:
            request.pop(wire_name, None)
        else:
            request[wire_name] = value
    if not stream:
        request.pop("stream_options", None)
    return {**request, "model": spec.model, "store": False, "stream": stream}
