"""A Responses request for a server that has the Responses API itself: it goes there as it came.

Explicit nulls are left out; `extra_body` and NeMo Gym's fields in `metadata` are merged, as for Chat Completions.
Fields that would hide the conversation from the farm are refused: state stored at the server, a prompt that it cuts,
and tools that it runs by itself, which neither an environment nor a record would see.
"""

from __future__ import annotations

from gym.jsontypes import JsonObject
from gym.wire.checks import as_bool, as_list, as_object, present
from gym.wire.errors import WireError
from gym.wire.responses.items import recorded_messages
from gym.wire.responses.request import refuse_stored
from gym.wire.server_fields import EXTRAS, add_extras

_RUN_BY_CLIENTS = ("function", "custom")
_REFUSED = {
    "messages": "is a field of Chat Completions: the conversation is the `input`",
    "previous_input_messages": "hides a part of the conversation: send all of it as `input`",
}


def to_server_request(body: JsonObject) -> JsonObject:
    """Return the body as the server gets it, without the policy's settings. Raises WireError."""
    refuse_stored(as_object(body, ""))
    request = {name: value for name, value in present(body).items() if name not in EXTRAS}
    add_extras(request, body)
    if request.get("input") is not body.get("input"):
        raise WireError("extra_body.input", "cannot be set here; say it in the request itself")
    refuse_stored(request)
    for field, message in _REFUSED.items():
        if request.get(field) is not None:
            raise WireError(field, message)
    _check_input(request.get("input"))
    for number, value in enumerate(as_list(request.get("tools") or [], "tools")):
        if as_object(value, f"tools.{number}").get("type") not in _RUN_BY_CLIENTS:
            raise WireError(f"tools.{number}.type", "the server's own tools are not used: offer function tools")
    as_bool(request.get("stream", False), "stream")
    if "metadata" in request:
        metadata = as_object(request.pop("metadata"), "metadata")
        if kept := {name: value for name, value in metadata.items() if name not in EXTRAS}:
            request["metadata"] = kept
    return request


def _check_input(given: object) -> None:
    """Check the fields that the farm reads; the server refuses other faults."""
    if not given:
        raise WireError("input", "is missing or empty: a text or a list of items")
    for number, item in enumerate([] if isinstance(given, str) else as_list(given, "input")):
        if as_object(item, f"input.{number}").get("type") == "item_reference":
            raise WireError(f"input.{number}.type", "nothing is stored to refer to: send the item itself")


def recorded_request(request: JsonObject) -> JsonObject:
    """Return the record of a request: its input as messages, all else as it is. Raises WireError."""
    recorded = {name: value for name, value in request.items() if name != "input"}
    return {**recorded, "messages": recorded_messages(request["input"])}
