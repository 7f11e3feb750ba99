"""Token ids and log-probabilities of a call: request fields and readers.

In order of preference: `return_token_ids` (vLLM from 0.10.2) gives the ids of prompt and answer; `logprobs` with
`return_tokens_as_token_ids` gives those of the answer as texts `token_id:N`, and the prompt's come from a second call
to `/tokenize`, marked `source="tokenize"`. An endpoint's capability is learned from its first answer.

A caller that wants alternatives to each token must not get `token_id:N` in them, and vLLM offers no way back to their
texts. Such a call requests those texts only if no other field has given ids.

Invariant: ids are the server's, or the turn has none. Inconsistent data (lengths, counts, a missing value) gives None
for the turn. Cost is linear in the tokens; ids are kept in arrays of 4 bytes each.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import Any, Literal

from gym.jsontypes import JsonObject
from gym.model_client.http.refusal import Refusal
from gym.model_client.tokens.prompt_text import PromptIds
from gym.trajectory import TurnTokens
from gym.wire.chat.completion import ID_MARK, usage_of

Level = Literal["unknown", "native", "text", "none"]

_ASKS: dict[Level, JsonObject] = {
    "unknown": {"logprobs": True, "return_token_ids": True, "return_tokens_as_token_ids": True},
    "native": {"logprobs": True, "return_token_ids": True},
    "text": {"logprobs": True, "return_tokens_as_token_ids": True},
    "none": {},
}
_UNREADABLE = (KeyError, TypeError, ValueError, OverflowError)
# fields of a chat request that determine how its prompt is tokenised
_TEMPLATE_FIELDS = (
    "messages",
    "tools",
    "add_generation_prompt",
    "continue_final_message",
    "add_special_tokens",
    "chat_template",
    "chat_template_kwargs",
    "mm_processor_kwargs",
    "required_prefix_token_ids",
)


@dataclass(frozen=True, slots=True)
class GeneratedTokens:
    """Tokens that an answer contains; `prompt_ids` is None if the server does not return them."""

    prompt_ids: array[int] | None
    token_ids: array[int]
    logprobs: array[float]
    ended: bool | None = None
    text: bytes | None = None

    def with_prompt(self, prompt_ids: array[int]) -> TurnTokens:
        """Return the turn, with a prompt that the server tokenised in another call."""
        return TurnTokens(prompt_ids, self.token_ids, self.logprobs, source="tokenize", ended=self.ended)

    def complete(self) -> TurnTokens | None:
        """Return the turn if the server gave all of it; a prompt without tokens counts as missing."""
        if not self.prompt_ids:
            return None
        return TurnTokens(self.prompt_ids, self.token_ids, self.logprobs, ended=self.ended, text=self.text)


class Capture:
    """Known token capability of one endpoint."""

    __slots__ = ("level", "tokenizes")

    def __init__(self) -> None:
        self.level: Level = "unknown"
        self.tokenizes = True

    def read(self, completion: JsonObject, *, asked: Level) -> GeneratedTokens | None:
        """Read the tokens of an answer, and learn the endpoint's capability from it."""
        if asked == "none":
            return None
        generated, level = read_generated(completion)
        if level is not None:
            self.level = level
        elif asked == "unknown" and usage_of(completion).output_tokens > 0:
            self.level = "text" if _has_alternatives(completion) else "none"
        else:
            self.level = "unknown"
        return generated

    def refused(self, refusal: Refusal, *, asked: Level) -> bool:
        """Return whether a server refused the token fields; then they are not sent again."""
        if asked == "none":
            return False
        named = refusal.param in _ASKS["unknown"] or "return_token" in refusal.message
        if named:
            self.level = "none"
        return named


def with_asks(body: JsonObject, level: Level) -> JsonObject:
    """Add the token fields of a level to a chat request."""
    if level == "unknown" and body.get("top_logprobs"):
        level = "native"
    return body | _ASKS[level]


def read_generated(completion: JsonObject) -> tuple[GeneratedTokens | None, Level | None]:
    """Read the tokens of a chat completion with one choice, and the level that they prove."""
    choice = completion["choices"][0]
    logprobs = choice.get("logprobs")
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(content, list):
        return None, None
    ids, prompt = choice.get("token_ids"), completion.get("prompt_token_ids")
    level: Level = "native" if isinstance(ids, list) and isinstance(prompt, list | PromptIds) else "text"
    try:
        token_ids = array("i", ids) if isinstance(ids, list) else _ids_of_texts(content)
        if token_ids is None:
            return None, None
        if isinstance(prompt, PromptIds):
            prompt_ids: array[int] | None = prompt.ids
        else:
            prompt_ids = array("i", prompt) if isinstance(prompt, list) else None
        values = array("f", [entry["logprob"] for entry in content])
    except _UNREADABLE:
        return None, level
    if len(values) != len(token_ids) or not _counted(completion, len(token_ids)):
        return None, level
    text = prompt.continued(token_ids) if isinstance(prompt, PromptIds) else None
    return GeneratedTokens(prompt_ids, token_ids, values, choice.get("ended"), text), level


def _counted(completion: JsonObject, tokens: int) -> bool:
    """Return whether the server's token count agrees, if it has one; a stream may have left tokens out."""
    usage = completion.get("usage")
    count = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return not isinstance(count, int) or count == tokens


def _has_alternatives(completion: JsonObject) -> bool:
    """Return whether the caller had asked for alternatives."""
    try:
        return any(entry["top_logprobs"] for entry in completion["choices"][0]["logprobs"]["content"])
    except _UNREADABLE:
        return False


def _ids_of_texts(content: list[Any]) -> array[int] | None:
    """Return the ids in `token_id:N`; None if there are none, or if the tokens are shown as texts."""
    if not content or not content[0]["token"].startswith(ID_MARK):
        return None
    start = len(ID_MARK)
    return array("i", [int(entry["token"][start:]) for entry in content])


def tokenize_request(body: JsonObject) -> JsonObject:
    """Return the body of `/tokenize` for the prompt of a chat request."""
    request = {name: body[name] for name in _TEMPLATE_FIELDS if name in body}
    return {"model": body["model"], "add_generation_prompt": True} | request


def read_tokenized(answer: Any, completion: JsonObject) -> array[int] | None:
    """Return the ids of `/tokenize`, if their number equals the prompt's token count in `usage`."""
    try:
        ids = array("i", answer["tokens"])
        return ids if ids and len(ids) == completion["usage"]["prompt_tokens"] else None
    except _UNREADABLE:
        return None
