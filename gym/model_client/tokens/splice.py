"""A prompt that goes on from the exact tokens of the turn before, whatever the chat template does to history. Pure.

A template may write an earlier turn otherwise than the model did: it drops reasoning, or text comes back as other
tokens. Its prompt then no longer begins with the tokens so far. The prompt made here does: the tokens of the turn
before as they were, and behind them what the template puts behind that turn's end: end mark, tool results, the
next user's words, the generation prompt.

The place of that end is found without knowing the template. The conversation is rendered twice, the second time with
the last assistant message altered (`altered`): its content, or the arguments of its last call, are a marker. With

    whole   = start + what the message is rendered to  + tail        tail the longest common end,
    altered = start + what the marker is rendered to   + tail        start the longest common beginning of the rest,

the end of the turn stands behind the marker. Its mark is known, the model wrote it as the last token of the turn. Where
the marker's part does not hold it, its first place in the tail is the turn's end, and what follows is what is new. A
turn that a limit or a stop text cut has no end mark: without calls the whole tail follows, so that the template closes
it; with calls the tail begins inside of a call.

No splice is made where the marker is not in the rendering, the marker's part holds the end mark (the alteration changed
more than one message), or the tail does not hold it (the template closes turns with another token than the model).
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Sequence

from gym.jsontypes import JsonObject

_CONTENT = "the end of this message~"
_ARGUMENTS = '{"end": "of this call~"}'


def altered(messages: Sequence[JsonObject]) -> tuple[list[JsonObject], bool] | None:
    """The conversation with a marker in its last assistant message, and whether that calls tools; None without one."""
    place = next((i for i in range(len(messages) - 1, -1, -1) if messages[i].get("role") == "assistant"), None)
    if place is None:
        return None
    message = dict(messages[place])
    calls = message.get("tool_calls")
    if calls:
        function = {**calls[-1]["function"], "arguments": _ARGUMENTS}
        message["tool_calls"] = [*calls[:-1], {**calls[-1], "function": function}]
    else:
        message["content"] = _CONTENT
    return [*messages[:place], message, *messages[place + 1 :]], bool(calls)


def begins_with(ids: array[int], earlier: array[int]) -> bool:
    """Whether a prompt goes on from the tokens before it, with at least one more."""
    return len(ids) > len(earlier) and ids[: len(earlier)] == earlier


def spliced(
    earlier: array[int], whole: array[int], altered: array[int], *, ended: bool | None, called: bool
) -> array[int] | None:
    """The prompt, or None where it cannot be made safely.

    `earlier` are prompt and answer of the turn before. `ended` is whether its last token is an end mark that the model
    wrote, None where that is not known; `called` is whether it called tools.
    """
    tail = whole[len(whole) - _common_end(whole, altered) :]
    marker_end = len(altered) - len(tail)
    marker = altered[min(_common_start(whole, altered), len(whole) - len(tail), marker_end) : marker_end]
    if not earlier or not marker or not tail:
        return None
    mark = earlier[-1]
    if ended is None and not called and tail[0] == mark:
        ended = True
    if ended:
        if mark in marker or mark not in tail:
            return None
        tail = tail[tail.index(mark) + 1 :]
    elif ended is None or called:
        return None
    return earlier + tail if tail else None


def _common_start(one: array[int], other: array[int]) -> int:
    """How many tokens two lists begin with in common."""
    lengths = range(1, min(len(one), len(other)) + 1)
    return bisect_left(lengths, True, key=lambda length: one[:length] != other[:length])


def _common_end(one: array[int], other: array[int]) -> int:
    """How many tokens two lists end with in common."""
    lengths = range(1, min(len(one), len(other)) + 1)
    return bisect_left(lengths, True, key=lambda length: one[-length:] != other[-length:])
