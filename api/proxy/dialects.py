"""Dialects of the proxy: requests, answers, streams and errors of four APIs. No I/O."""

from __future__ import annotations

from typing import Protocol

from api.proxy.errors import Shape
from gym.jsontypes import JsonObject
from gym.wire.chat import request as chat
from gym.wire.chat.stream import ChatStream, StreamTranslator
from gym.wire.gemini import request as gemini_request
from gym.wire.gemini.reply import to_gemini
from gym.wire.gemini.stream import GeminiStream
from gym.wire.messages import request as messages_request
from gym.wire.messages.reply import to_message
from gym.wire.messages.stream import MessagesStream
from gym.wire.passthrough.reply import RESPONSE, shown_response
from gym.wire.passthrough.request import recorded_request
from gym.wire.passthrough.stream import PassedStream
from gym.wire.responses import request as responses_request
from gym.wire.responses.reply import to_response
from gym.wire.responses.stream import ResponsesStream


class Dialect(Protocol):
    """API of model calls. `body` is the caller's request; ids in an answer derive from `call_id`."""

    name: str
    shape: Shape

    def to_chat(self, body: JsonObject) -> JsonObject:
        """Translate the request to Chat Completions. Raises WireError."""

    def reply(self, body: JsonObject, completion: JsonObject, *, call_id: str, created_at: float) -> JsonObject:
        """Return the whole answer. Raises BadCompletion."""

    def stream(self, body: JsonObject, *, call_id: str, created_at: float) -> StreamTranslator:
        """Return a translator of chunks to events."""

    def request_items(self, body: JsonObject) -> int | None:
        """Return the number of input items of a request, or None if the dialect has no items."""


class Responses:
    """OpenAI's Responses API."""

    name = "responses"
    shape: Shape = "openai"

    def to_chat(self, body: JsonObject) -> JsonObject:
        """See Dialect."""
        return responses_request.to_chat_request(body)

    def reply(self, body: JsonObject, completion: JsonObject, *, call_id: str, created_at: float) -> JsonObject:
        """See Dialect."""
        return to_response(body, completion, response_id=f"resp_{call_id}", created_at=created_at)

    def stream(self, body: JsonObject, *, call_id: str, created_at: float) -> StreamTranslator:
        """See Dialect."""
        return ResponsesStream(body, response_id=f"resp_{call_id}", created_at=created_at)

    def request_items(self, body: JsonObject) -> int | None:
        """See Dialect."""
        return len(body["input"]) if isinstance(body["input"], list) else 1


class PassedResponses(Responses):
    """Responses API passed through to a server that has it; `to_chat` makes only the recorded form."""

    def to_chat(self, body: JsonObject) -> JsonObject:
        """See Dialect; `body` is the request as sent to the server."""
        return recorded_request(body)

    def reply(self, body: JsonObject, completion: JsonObject, *, call_id: str, created_at: float) -> JsonObject:  # noqa: ARG002  Dialect's
        """See Dialect."""
        return shown_response(body, completion[RESPONSE])

    def stream(self, body: JsonObject, *, call_id: str, created_at: float) -> StreamTranslator:
        """See Dialect."""
        return PassedStream(body, response_id=f"resp_{call_id}", created_at=created_at)


class Chat:
    """OpenAI's Chat Completions; ids are the server's."""

    name = "chat"
    shape: Shape = "openai"

    def to_chat(self, body: JsonObject) -> JsonObject:
        """See Dialect."""
        return chat.to_chat_request(body)

    def reply(self, body: JsonObject, completion: JsonObject, *, call_id: str, created_at: float) -> JsonObject:  # noqa: ARG002  Dialect's
        """See Dialect."""
        return chat.to_completion(body, completion)

    def stream(self, body: JsonObject, *, call_id: str, created_at: float) -> StreamTranslator:  # noqa: ARG002  Dialect's
        """See Dialect."""
        return ChatStream(body)

    def request_items(self, body: JsonObject) -> int | None:  # noqa: ARG002  Dialect's
        """See Dialect."""
        return None


class Messages:
    """Anthropic's Messages."""

    name = "messages"
    shape: Shape = "anthropic"

    def to_chat(self, body: JsonObject) -> JsonObject:
        """See Dialect."""
        return messages_request.to_chat_request(body)

    def reply(self, body: JsonObject, completion: JsonObject, *, call_id: str, created_at: float) -> JsonObject:  # noqa: ARG002  Dialect's
        """See Dialect."""
        return to_message(body, completion, message_id=f"msg_{call_id}")

    def stream(self, body: JsonObject, *, call_id: str, created_at: float) -> StreamTranslator:  # noqa: ARG002  Dialect's
        """See Dialect."""
        return MessagesStream(body, message_id=f"msg_{call_id}")

    def request_items(self, body: JsonObject) -> int | None:  # noqa: ARG002  Dialect's
        """See Dialect."""
        return None


class Gemini:
    """Google's generateContent; the body has what its address says too, as `model` and `stream`."""

    name = "gemini"
    shape: Shape = "google"

    def to_chat(self, body: JsonObject) -> JsonObject:
        """See Dialect."""
        return gemini_request.to_chat_request(body)

    def reply(self, body: JsonObject, completion: JsonObject, *, call_id: str, created_at: float) -> JsonObject:  # noqa: ARG002  Dialect's
        """See Dialect."""
        return to_gemini(body, completion, response_id=call_id)

    def stream(self, body: JsonObject, *, call_id: str, created_at: float) -> StreamTranslator:  # noqa: ARG002  Dialect's
        """See Dialect."""
        return GeminiStream(body, response_id=call_id)

    def request_items(self, body: JsonObject) -> int | None:  # noqa: ARG002  Dialect's
        """See Dialect."""
        return None


GEMINI = Gemini()
PASSED_RESPONSES = PassedResponses()
DIALECTS: dict[str, Dialect] = {
    "/v1/responses": Responses(),
    "/v1/chat/completions": Chat(),
    "/v1/messages": Messages(),
}
