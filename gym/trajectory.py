"""Record of an episode: items for display, token deltas for training.

Invariants. Token ids and log-probabilities are those that the server returned, never re-tokenised. A turn stores only
its delta: the part of its prompt beyond the segment's tokens. If a prompt does not begin with the tokens before it, a
new segment starts (`Segments`). The loss mask is 1 for tokens that the policy sampled, else 0.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from gym.jsontypes import JsonObject


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of the server."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cached_tokens + other.cached_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
        )


CallFinish = Literal["stop", "max_tokens", "content_filter", "context_overflow"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFacts:
    """Facts of one answered model call: the same value from the model client to every record of the call.

    `endpoint` is a base URL without credentials. The versions are those that the server reported, else those that were
    announced when the call was sent and when its answer arrived. `duration_s` covers all attempts and waits.
    `started_s` counts from the rollout's start; the model client does not know it and leaves None.
    Token ids are kept apart from it, since a trajectory stores them as deltas (`Segments`).
    """

    endpoint: str
    finish: CallFinish
    usage: Usage
    version_before: int | None
    version_after: int | None
    duration_s: float
    attempts: int
    started_s: float | None = None


@dataclass(frozen=True, slots=True)
class TurnTokens:
    """Tokens of one model call: the whole prompt, the generated tokens and their log-probabilities.

    `source` is `tokenize` if the prompt's ids come from a separate `/tokenize` call. `ended`: whether the last token is
    an end token that the model sampled; None if unknown. `text`: all ids in the server's JSON form, for the next turn
    (`gym.model_client.tokens.prompt_text`).
    """

    prompt_ids: Sequence[int]
    token_ids: Sequence[int]
    logprobs: Sequence[float]
    source: Literal["server", "tokenize"] = "server"
    ended: bool | None = None
    text: bytes | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCall:
    """One model call of a trajectory, as results show it.

    Its request was the first `request_items` of the input items and the trajectory's items, its reply the next
    `reply_items`. So a conversation is stored once, however many calls saw it. `facts.started_s` is set.
    """

    turn: int
    facts: CallFacts
    request_items: int
    reply_items: int = 0
    has_tokens: bool


@dataclass(slots=True)
class Segment:
    """Sequence of tokens in which every turn's prompt begins with the tokens before it."""

    token_ids: array[int] = field(default_factory=lambda: array("i"))
    loss_mask: bytearray = field(default_factory=bytearray)
    logprobs: array[float] = field(default_factory=lambda: array("f"))
    policy_versions: list[tuple[int, int, int | None]] = field(default_factory=list)  # [start, end), version

    def extend(self, ids: Sequence[int], *, mask: int, logprobs: Sequence[float] | None) -> None:
        """Append tokens with one mask; tokens that the policy did not sample get log-probability 0."""
        self.token_ids.extend(ids)
        self.loss_mask.extend(bytes([mask]) * len(ids))
        self.logprobs.extend(logprobs if logprobs is not None else [0.0] * len(ids))


class Segments:
    """Collector of turns into segments; memory grows with the delta of each turn."""

    def __init__(self) -> None:
        self.segments: list[Segment] = []

    def add_turn(self, tokens: TurnTokens, version: int | None) -> None:
        """Add the tokens of the next model call. Raises ValueError if ids and log-probabilities differ in length."""
        if len(tokens.token_ids) != len(tokens.logprobs):
            raise ValueError(f"{len(tokens.token_ids)} token ids, {len(tokens.logprobs)} log-probabilities")
        segment = self.segments[-1] if self.segments else None
        prompt = array("i", tokens.prompt_ids)
        if segment is None or prompt[: len(segment.token_ids)] != segment.token_ids:
            segment = Segment()
            self.segments.append(segment)
        segment.extend(prompt[len(segment.token_ids) :], mask=0, logprobs=None)
        start = len(segment.token_ids)
        segment.extend(tokens.token_ids, mask=1, logprobs=tokens.logprobs)
        if tokens.token_ids:
            segment.policy_versions.append((start, len(segment.token_ids), version))


@dataclass(frozen=True, slots=True)
class ToolCall:
    """Tool call of the model with its output."""

    name: str
    arguments: JsonObject | None  # None if they were not a JSON object
    output: str
    failed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTaken:
    """Action in a stepped environment and its reward; `turn` is the model call that chose it."""

    turn: int
    action: Any
    reward: float
    done: bool
    truncated: bool = False


@dataclass(slots=True)
class Trajectory:
    """Record of an episode, read by the environment's verifier at the end.

    `items` are Responses API items in order: messages, reasoning, function_call, function_call_output; for a stepped
    environment also the user messages with its observations.
    """

    params: JsonObject
    items: list[JsonObject] = field(default_factory=list)
    tool_calls: list[ToolCall] = field(default_factory=list)
    steps: list[StepTaken] = field(default_factory=list)
    calls: list[ModelCall] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    segments: Segments = field(default_factory=Segments)
    tokens_complete: bool = True
    stop_reason: str | None = None

    @property
    def final_text(self) -> str:
        """Text of the last assistant message, or an empty string."""
        for item in reversed(self.items):
            if item.get("type") == "message" and item.get("role") == "assistant":
                return message_text(item)
        return ""


def message_text(item: JsonObject) -> str:
    """Return the joined output_text parts of a message; parts without a text are skipped."""
    content: Any = item.get("content")
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    texts = (part.get("text") for part in content if isinstance(part, dict))
    return "".join(text for text in texts if isinstance(text, str))
