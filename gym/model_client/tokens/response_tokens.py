"""Token ids and log-probabilities of a call in the Responses API, as far as a server gives them.

vLLM gives the ids of prompt and answer with `enable_response_messages` (`input_messages`, `output_messages`, one of
each), and a log-probability for each generated token on the text of the answer, with `include`. An answer without a
text, one of calls alone, has none; nor has all of a streamed one, whose last token shows nothing (seen in 0.32). Such a
turn has no tokens here. OpenAI's servers refuse the first; gpt-oss on vLLM refuses the second.

Invariant: ids are the server's, and each has its own log-probability, or there are none for the turn.
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
    """What one endpoint can say of the tokens of such calls, as far as it is known."""

    __slots__ = ("level",)

    def __init__(self) -> None:
        self.level: Level = "unknown"

    def read(self, completion: JsonObject, *, asked: Level) -> GeneratedTokens | None:
        """The tokens of an answer to a request that asked for them; learns from what is there."""
        if asked == "none":
            return None
        response = completion[RESPONSE]
        if _tokens(response.get("input_messages")) is not None:
            self.level = "native"
        elif usage_of(completion).output_tokens > 0:
            self.level = "none"
        return read_response_tokens(response)

    def refused(self, refusal: Refusal, *, asked: Level) -> bool:
        """Whether a server refused to be asked for tokens; it is not asked again then."""
        if asked == "none":
            return False
        named = refusal.param.startswith(_PARAMS) or ASKED in refusal.message or LOGPROBS in refusal.message
        if named:
            self.level = "none"
        return named


def with_asks(body: JsonObject, level: Level) -> JsonObject:
    """The Responses request with what is asked for at a level."""
    if level == "none":
        return body
    wanted = body.get("include") or []
    return {**body, ASKED: True, "include": wanted if LOGPROBS in wanted else [*wanted, LOGPROBS]}


def read_response_tokens(response: JsonObject) -> GeneratedTokens | None:
    """The tokens of a response; None where it does not name them all with their log-probabilities."""
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
    """The ids of what was said, where all of it is one message of tokens."""
    try:
        [message] = messages
        return array("i", message["tokens"])
    except _UNREADABLE:
        return None
