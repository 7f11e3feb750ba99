"""`required_prefix_token_ids`: a chat server is told the exact tokens that the next prompt must begin with.

NeMo RL's vLLM server takes it and puts these tokens where its chat template would have written the turns before, so
that a conversation is one segment (nemo_rl/models/generation/vllm/vllm_worker_async.py). A stock vLLM ignores it.

What an endpoint does with it is learned. One that refuses the field is not sent it again. One whose prompts do not
begin with what was required is sent it no more after `MOST_MISSES`, so that a server that ignores it does not cost the
sending of every conversation's tokens; single misses beside many hits do not count. A server whose template keeps
history as it was is sent it for good: that cannot be told from one that takes it.

Invariant: this only ever asks. What the prompt was is read from the answer.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import orjson

from gym.jsontypes import JsonObject
from gym.model_client.http.refusal import Refusal
from gym.policy import PolicySpec
from gym.trajectory import TurnTokens

FIELD = "required_prefix_token_ids"
MOST_MISSES = 3
MISS_SHARE = 0.1  # of the answers, from which on misses count


class PrefixSupport:
    """What one endpoint does with the field, as far as it is known."""

    __slots__ = ("hits", "misses", "refused")

    def __init__(self) -> None:
        self.hits = 0
        self.misses = 0
        self.refused = False

    @property
    def given_up(self) -> bool:
        """Whether it is sent no more where the policy does not insist."""
        return self.refused or (self.misses >= MOST_MISSES and self.misses >= MISS_SHARE * (self.hits + self.misses))

    def asks(self, spec: PolicySpec, body: JsonObject, earlier: TurnTokens | None) -> JsonObject:
        """What a chat request for a turn that follows `earlier` carries in addition."""
        if earlier is None or spec.api != "chat" or not spec.token_ids or FIELD in body or self.refused:
            return {}
        if spec.required_prefix is False or (spec.required_prefix is None and self.given_up):
            return {}
        text = earlier.text
        return {FIELD: prefix_of(earlier).tolist() if text is None else orjson.Fragment(b"[%b]" % text)}

    def learn(self, earlier: TurnTokens, prompt_ids: Sequence[int]) -> None:
        """What the prompt was of a call that carried the prefix."""
        prefix = prefix_of(earlier)
        if array("i", prompt_ids[: len(prefix)]) == prefix:
            self.hits += 1
        else:
            self.misses += 1

    def learn_refusal(self, refusal: Refusal, *, sent: bool) -> bool:
        """Whether a server refused the request for the field's sake."""
        named = sent and (refusal.param == FIELD or FIELD in refusal.message)
        self.refused = self.refused or named
        return named

    def describe(self) -> str:
        """For people: unknown, accepted, refused or ignored."""
        if self.refused:
            return "refused"
        if self.given_up:
            return "ignored"
        return "accepted" if self.hits else "unknown"


def prefix_of(turn: TurnTokens) -> array[int]:
    """The tokens of the conversation up to the end of a turn."""
    return array("i", turn.prompt_ids) + array("i", turn.token_ids)
