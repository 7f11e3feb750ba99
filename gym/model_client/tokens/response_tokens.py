"""Token ids and log-probabilities of a call in the Responses API.

vLLM gives the ids of prompt and answer with `enable_response_messages` (`input_messages`, `output_messages`, one of
each), and with `include` a log-probability for each generated token on the text of the answer. An answer of tool calls
alone has none, and a streamed one lacks that of its last token (seen in 0.32): such a turn has no tokens here. OpenAI's
servers refuse the first field; gpt-oss on vLLM refuses the second.

Invariant: ids are the server's, and each has its log-probability; otherwise the turn has no tokens.
"""

from __future__ import annotations

from array import array
from typing import Any

from gym.jsontypes import JsonObject
from gym.model_client.http.refusal import Refusal
from gym.model_client.tokens.capture import GeneratedTokens, Level
from gym.wire.chat.completion import usage_of
from gym.wire.passthrough.reply import ASKED, RESPONSE
from gym.wire.responses.request import LOGPROBS

_PARAMS = (ASKED, "include", "logprobs")
_UNREADABLE = (KeyError, TypeError, ValueError, OverflowError)


class ResponseCapture:
    """Known token capability of one endpoint for Responses calls."""

    __slots__ = ("level",)

    def __init__(self) -> None:
        self.level: Level = "unknown"

    def read(self, completion: JsonObject, *, asked: Level) -> GeneratedTokens | None:
        """Read the tokens of an answer, and learn the endpoint's capability from it."""
        if asked == "none":
            return None
        response = completion[RESPONSE]
        if _tokens(response.get("input_messages")) is not None:
            self.level = "native"
        elif usage_of(completion).output_tokens > 0:
            self.level = "none"
        return read_response_tokens(response)

    def refused(self, refusal: Refusal, *, asked: Level) -> bool:
        """Return whether a server refused the token fields; then they are not sent again."""
        if asked == "none":
            return False
        named = refusal.param.startswith(_PARAMS) or ASKED in refusal.message or LOGPROBS in refusal.message
        if named:
            self.level = "none"
        return named


def with_asks(body: JsonObject, level: Level) -> JsonObject:
    """Add the token fields of a level to a Responses request."""
    if level == "none":
        return body
    wanted = body.get("include") or []
    return {**body, ASKED: True, "include": wanted if LOGPROBS in wanted else [*wanted, LOGPROBS]}


def read_response_tokens(response: JsonObject) -> GeneratedTokens | None:
    """Read the tokens of a response; None unless all of them have log-probabilities."""
    prompt_ids, token_ids = _tokens(response.get("input_messages")), _tokens(response.get("output_messages"))
    if prompt_ids is None or token_ids is None:
        return None
    try:
        if len(token_ids) != response["usage"]["output_tokens"]:
            return None
        parts = [part for item in response["output"] for part in item.get("content") or () if part.get("logprobs")]
        if len(parts) != 1 or len(parts[0]["logprobs"]) != len(token_ids):
            return None
        return GeneratedTokens(prompt_ids, token_ids, array("f", [entry["logprob"] for entry in parts[0]["logprobs"]]))
    except _UNREADABLE:
        return None


def _tokens(messages: Any) -> array[int] | None:
    """Return the ids of a message list that is a single message of tokens, else None."""
    try:
        [message] = messages
        return array("i", message["tokens"])
    except _UNREADABLE:
        return None
