"""A streamed chat completion as the pieces of streamGenerateContent.

Thoughts and text are sent as they come. Function calls are whole there, so they are sent at the end, with the finish
reason and the usage.
Source: Google's `GenerateContentResponse`.
"""

from __future__ import annotations

from gym.jsontypes import JsonObject
from gym.plain import exact_json
from gym.wire.chat.chunks import ChatAccumulator
from gym.wire.chat.completion import choice_of, finish_of, usage_of
from gym.wire.chat.stream import CUT, Event
from gym.wire.errors import BadCompletion
from gym.wire.gemini.reply import FINISH, answer, call_parts, thought_part, wants_thoughts


class GeminiStream:
    """Feeds on chunks; see `gym.wire.chat.stream.StreamTranslator`."""

    tail = b""

    def __init__(self, body: JsonObject, *, response_id: str) -> None:
        self._response_id = response_id
        self._model: str = body.get("model") or ""
        self._thoughts = wants_thoughts(body)
        self._answer = ChatAccumulator()

    def start(self) -> list[Event]:
        """Return no events."""
        return []

    def feed(self, chunk: JsonObject) -> list[Event]:
        """Return the pieces of a chunk. Raises BadCompletion for an error in mid-stream."""
        delta = self._answer.feed(chunk)
        self._model = chunk.get("model") or self._model
        parts: list[JsonObject] = []
        if delta is not None:
            if delta.reasoning and self._thoughts:
                parts.append(thought_part(delta.reasoning))
            parts += [{"text": text} for name in ("content", "refusal") if (text := delta.texts.get(name))]
        return [self._piece(parts)] if parts else []

    def finish(self) -> list[Event]:
        """Return the calls, the finish reason and the usage. Raises BadCompletion if the answer has no end."""
        if not self._answer.finished:
            raise BadCompletion(CUT)
        completion = self._answer.completion()
        choice = choice_of(completion)
        parts = call_parts(choice["message"], response_id=self._response_id) or [{"text": ""}]
        return [self._piece(parts, FINISH[finish_of(choice)], completion)]

    def fail(self, message: str) -> list[Event]:
        """An error object, as Google's servers write it."""
        return [(None, {"error": {"code": 503, "message": message, "status": "UNAVAILABLE"}})]

    def _piece(self, parts: list[JsonObject], finish: str | None = None, completion: JsonObject | None = None) -> Event:
        usage = None if completion is None else usage_of(completion)
        made = answer(parts, response_id=self._response_id, model=self._model, finish=finish, usage=usage)
        return None, made


class ArrayFrames:
    """Writes the pieces of an answer as one JSON array, as streamGenerateContent does without `alt=sse`."""

    content_type = b"application/json; charset=utf-8"

    def __init__(self) -> None:
        self._begun = False

    def encode(self, events: list[Event]) -> bytes:
        """Return the events as elements of the array."""
        pieces = []
        for _, data in events:
            pieces.append((b",\n" if self._begun else b"[") + exact_json.dumps(data))
            self._begun = True
        return b"".join(pieces)

    def end(self, tail: bytes) -> bytes:  # noqa: ARG002  the tail of event streams
        """Return the end of the array."""
        return b"]" if self._begun else b"[]"
