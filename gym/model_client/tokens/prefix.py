"""Field `required_prefix_token_ids`: the exact tokens that the next prompt of a chat server must begin with.

NeMo RL's vLLM server puts these tokens in place of the earlier turns that its chat template would have written. So a
conversation is one segment (nemo_rl/models/generation/vllm/vllm_worker_async.py). A stock vLLM ignores the field.

The support of an endpoint is learned. After a refusal the field is not sent again. If prompts do not begin with the
required tokens, it is not sent after `MOST_MISSES`, which saves sending every conversation's tokens to a server that
ignores them; single misses beside many hits do not count. A server whose template keeps history unchanged always gets
the field: it looks like one that supports it.

Invariant: the field is only a request. The actual prompt is read from the answer.
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
MISS_SHARE = 0.1  # minimum share of the answers at which misses count


class PrefixSupport:
    """Known support of one endpoint for the field."""

    __slots__ = ("hits", "misses", "refused")

    def __init__(self) -> None:
        self.hits = 0
        self.misses = 0
        self.refused = False

    @property
    def given_up(self) -> bool:
        """Whether the field is no longer sent, unless the policy requires it."""
        return self.refused or (self.misses >= MOST_MISSES and self.misses >= MISS_SHARE * (self.hits + self.misses))

    def asks(self, spec: PolicySpec, body: JsonObject, earlier: TurnTokens | None) -> JsonObject:
        """Return the extra fields of a chat request for the turn after `earlier`."""
        if earlier is None or spec.api != "chat" or not spec.token_ids or FIELD in body or self.refused:
            return {}
        if spec.required_prefix is False or (spec.required_prefix is None and self.given_up):
            return {}
        text = earlier.text
        return {FIELD: prefix_of(earlier).tolist() if text is None else orjson.Fragment(b"[%b]" % text)}

    def learn(self, earlier: TurnTokens, prompt_ids: Sequence[int]) -> None:
        """Count whether the prompt of a call with the field began with the prefix."""
        prefix = prefix_of(earlier)
        if array("i", prompt_ids[: len(prefix)]) == prefix:
            self.hits += 1
        else:
            self.misses += 1

    def learn_refusal(self, refusal: Refusal, *, sent: bool) -> bool:
        """Return whether a server refused the request because of the field."""
        named = sent and (refusal.param == FIELD or FIELD in refusal.message)
        self.refused = self.refused or named
        return named

    def describe(self) -> str:
        """Return the support for display: unknown, accepted, refused or ignored."""
        if self.refused:
            return "refused"
        if self.given_up:
            return "ignored"
        return "accepted" if self.hits else "unknown"


def prefix_of(turn: TurnTokens) -> array[int]:
    """Return the tokens of the conversation up to the end of a turn."""
    return array("i", turn.prompt_ids) + array("i", turn.token_ids)
