"""The events of a server that has the Responses API itself, handed on as they come; and those of a known response.

The event with the whole response is held back until `finish`, so that a caller never sees an end that is not recorded.
"""

from __future__ import annotations

from collections.abc import Iterator

from gym.jsontypes import JsonObject
from gym.wire.chat.stream import CUT, Event
from gym.wire.errors import BadCompletion
from gym.wire.passthrough.reply import FINAL_EVENTS, shown_event
from gym.wire.responses.reply import build_response

_TEXTS = {"output_text": "text", "refusal": "refusal", "reasoning_text": "text"}


class PassedStream:
    """Feeds on the server's events; see `gym.wire.chat.stream.StreamTranslator`."""

    tail = b""

    def __init__(self, body: JsonObject, *, response_id: str, created_at: float) -> None:
        self._body = body
        self._last: JsonObject | None = None
        self._sequence = -1
        self._response = build_response(
            response_id=response_id,
            created_at=created_at,
            model=body.get("model") or "",
            output=[],
            usage=None,
            request=body,
            status="in_progress",
        )

    def start(self) -> list[Event]:
        """Return no events: the server sends them."""
        return []

    def feed(self, chunk: JsonObject) -> list[Event]:
        """The event, as the caller asked for it."""
        name = chunk.get("type")
        if not isinstance(name, str):
            raise BadCompletion("the model server streams something that is no event")
        event = shown_event(self._body, chunk)
        if isinstance(event.get("sequence_number"), int):
            self._sequence = event["sequence_number"]
        if isinstance(event.get("response"), dict):
            self._response = event["response"]
        if name in FINAL_EVENTS:
            self._last = event
            return []
        return [(name, event)]

    def finish(self) -> list[Event]:
        """The event with the whole response. Raises BadCompletion if the server gave none."""
        if self._last is None:
            raise BadCompletion(CUT)
        return [(self._last["type"], self._last)]

    def fail(self, message: str) -> list[Event]:
        """The response in state failed."""
        response = {**self._response, "status": "failed", "error": {"code": "server_error", "message": message}}
        event = {"type": "response.failed", "sequence_number": self._sequence + 1, "response": response}
        return [("response.failed", event)]


def events_of(response: JsonObject) -> list[JsonObject]:
    """The events of a stream that ends in this response, each text and each call's arguments in one piece."""
    begun = {**response, "status": "in_progress", "output": [], "usage": None, "incomplete_details": None}
    events: list[JsonObject] = [
        {"type": "response.created", "response": begun},
        {"type": "response.in_progress", "response": begun},
    ]
    for number, item in enumerate(response["output"]):
        events += _item_events(item, number)
    events.append({"type": f"response.{response['status']}", "response": response})
    return [{**event, "sequence_number": number} for number, event in enumerate(events)]


def _item_events(item: JsonObject, number: int) -> Iterator[JsonObject]:
    place = {"item_id": item.get("id"), "output_index": number}
    parts = item["content"] if isinstance(item.get("content"), list) else []
    begun = {**item, **({"content": []} if parts else {})}
    if item.get("type") == "function_call":
        begun["arguments"] = ""
    if "status" in item:
        begun["status"] = "in_progress"
    yield {"type": "response.output_item.added", "output_index": number, "item": begun}
    for index, part in enumerate(parts):
        yield from _part_events(part, {**place, "content_index": index})
    if item.get("type") == "function_call":
        said = item["arguments"]
        yield {"type": "response.function_call_arguments.delta", **place, "delta": said}
        done = {**place, "name": item["name"], "arguments": said}
        yield {"type": "response.function_call_arguments.done", **done}
    yield {"type": "response.output_item.done", "output_index": number, "item": item}


def _part_events(part: JsonObject, place: JsonObject) -> Iterator[JsonObject]:
    kind = part.get("type")
    field = _TEXTS.get(str(kind))
    empty = part if field is None else {**part, field: ""}
    yield {"type": "response.content_part.added", **place, "part": empty}
    if field is not None:
        more: JsonObject = {"logprobs": part.get("logprobs") or []} if kind == "output_text" else {}
        yield {"type": f"response.{kind}.delta", **place, "delta": part[field], **more}
        yield {"type": f"response.{kind}.done", **place, field: part[field], **more}
    yield {"type": "response.content_part.done", **place, "part": part}
