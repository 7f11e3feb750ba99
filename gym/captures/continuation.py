"""The turn that a captured call continues, with its exact tokens, for `api: tokens`.

A call continues an earlier one if the conversation up to that one's answer is the same, no other answer follows, and
the prompt is written from the same policy, tools and template settings. Only then are that turn's tokens a prefix of
this call's prompt.

Tokens are stored as deltas. The process that answered a turn keeps them whole for a while (`RecentTurns`); other
processes rebuild them from the records (`turn_of`).
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence

from gym.captures.conversation import Head, body_digest, unpack_numbers
from gym.jsontypes import JsonObject
from gym.trajectory import TurnTokens
from gym.wire.checks import words
from gym.wire.server_fields import OPENAI_FIELDS

RECENT_BYTES = 64 * 2**20
# fields of a chat request that do not affect its prompt; all others are taken to matter
_NOT_OF_THE_PROMPT = OPENAI_FIELDS | words("""
    model messages stream stream_options max_tokens max_completion_tokens logprobs top_logprobs
    tool_choice parallel_tool_calls response_format
    top_k min_p repetition_penalty length_penalty stop_token_ids include_stop_str_in_output ignore_eos min_tokens
    skip_special_tokens spaces_between_special_tokens allowed_token_ids bad_words prompt_logprobs logprob_token_ids
    thinking_token_budget include_reasoning repetition_detection structured_outputs structural_tag
    guided_json guided_regex guided_choice guided_grammar guided_decoding_backend guided_whitespace_pattern
    return_token_ids return_tokens_as_token_ids return_prompt_text
    priority request_id session_id cache_salt kv_transfer_params ec_transfer_params vllm_xargs stream_interval
""")


def prompt_digest(chat: JsonObject, *, policy: str, model: str) -> str:
    """Return a digest of everything but the messages that decides how a chat request's prompt is written."""
    settings = {name: value for name, value in chat.items() if name not in _NOT_OF_THE_PROMPT}
    return body_digest(policy, model, settings).hex()


def goes_on_from(head: Head | None, after: Sequence[JsonObject], prompt: str) -> bool:
    """Return whether a call's tokens are a prefix of this one's prompt; `after` are the messages that follow it."""
    if head is None or head.tokens is None or head.prompt != prompt:
        return False
    return all(message.get("role") != "assistant" for message in after)


def turn_of(records: Sequence[JsonObject], place: int) -> TurnTokens | None:
    """Return the tokens of a recorded call, None if it has none. `records` are all up to it."""
    packed = records[place]["tokens"]
    if packed is None:
        return None
    deltas = [packed]
    at = place
    while deltas[-1]["base"]:
        at = records[at]["parent"]
        if records[at]["tokens"] is not None:
            deltas.append(records[at]["tokens"])
    ids: array[int] = array("i")
    while deltas:
        delta = deltas.pop()
        del ids[delta["base"] :]
        ids += unpack_numbers("i", delta["prompt"])
        if deltas:
            ids += unpack_numbers("i", delta["ids"])
    return TurnTokens(
        ids,
        unpack_numbers("i", packed["ids"]),
        unpack_numbers("f", packed["logprobs"]),
        source=packed["source"],
        ended=packed.get("ended"),
    )


class RecentTurns:
    """Cache of the tokens of calls that this process answered: the latest of each conversation, bounded in bytes."""

    def __init__(self, max_bytes: int = RECENT_BYTES) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._turns: OrderedDict[tuple[str, int], TurnTokens] = OrderedDict()

    def keep(self, calls_key: str, place: int, turn: TurnTokens, *, after: Head | None) -> None:
        """Remember a turn and forget its predecessor. A sibling of the new turn then has to read the records."""
        if after is not None:
            self._forget((calls_key, after.place))
        self._turns[calls_key, place] = turn
        self._bytes += _size(turn)
        while self._bytes > self._max_bytes:
            self._forget(next(iter(self._turns)))

    def find(self, calls_key: str, place: int) -> TurnTokens | None:
        """Return a turn if it is still remembered."""
        return self._turns.get((calls_key, place))

    def _forget(self, key: tuple[str, int]) -> None:
        turn = self._turns.pop(key, None)
        if turn is not None:
            self._bytes -= _size(turn)


def _size(turn: TurnTokens) -> int:
    return 512 + 4 * (len(turn.prompt_ids) + 2 * len(turn.token_ids)) + len(turn.text or b"")
