"""Splicing of a prompt that continues the exact tokens of the previous turn, for any chat template. Pure.

A template may render an earlier turn differently from the model's tokens: it drops reasoning, or text is tokenised
differently. Its prompt then no longer begins with the tokens so far. The spliced prompt does: it is the unchanged
tokens of the previous turn, followed by the template's output after that turn: end token, tool results, the next user
message, the generation prompt.

The end of the turn is found without knowing the template. The conversation is rendered twice, the second time with the
last assistant message altered (`altered`): its content, or the arguments of its last call, are a marker. With

    whole   = start + rendered message  + tail        tail the longest common end,
    altered = start + rendered marker   + tail        start the longest common beginning of the rest,

the end of the turn follows the marker. Its end token is known: the model sampled it as the last token of the turn. If
the rendered marker does not contain it, its first position in the tail is the turn's end, and the rest is new. A turn
cut by a limit or a stop text has no end token: without calls the whole tail follows, so that the template closes the
turn; with calls the tail begins inside a call.

There is no splice if the marker is missing in the rendering, if the rendered marker contains the end token (more than
one message changed), or if the tail lacks it (the template closes turns with another token than the model).
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Sequence

from gym.jsontypes import JsonObject

_CONTENT = "the end of this message~"
_ARGUMENTS = '{"end": "of this call~"}'


def altered(messages: Sequence[JsonObject]) -> tuple[list[JsonObject], bool] | None:
    """Put a marker into the last assistant message; also return whether that calls tools. None without one."""
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
    """Return whether a prompt continues the earlier tokens with at least one more."""
    return len(ids) > len(earlier) and ids[: len(earlier)] == earlier


def spliced(
    earlier: array[int], whole: array[int], altered: array[int], *, ended: bool | None, called: bool
) -> array[int] | None:
    """Return the spliced prompt, or None if there is no safe splice.

    `earlier` are prompt and answer of the previous turn. `ended`: its last token is an end token that the model
    sampled, None if unknown. `called`: it called tools.
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
    lengths = range(1, min(len(one), len(other)) + 1)
    return bisect_left(lengths, True, key=lambda length: one[:length] != other[:length])


def _common_end(one: array[int], other: array[int]) -> int:
    lengths = range(1, min(len(one), len(other)) + 1)
    return bisect_left(lengths, True, key=lambda length: one[-length:] != other[-length:])
