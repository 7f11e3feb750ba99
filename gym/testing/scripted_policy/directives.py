"""Directives in a prompt, by which a test controls the scripted policy.

`gym.testing.scripted_policy.script` lists them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from gym.jsontypes import JsonObject
from gym.testing.scripted_policy.tokenizer import canonical_arguments, text_of


@dataclass(frozen=True, slots=True)
class ScriptedCall:
    """A tool call; `arguments` is JSON unless a directive asked for other text."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptedReply:
    """The policy's reply in one turn, and the server's behaviour for it."""

    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ScriptedCall, ...] = ()
    finish_reason: str = "stop"  # "stop", or "length" as if cut by a token limit; the server adds "tool_calls"
    sleep_s: float = 0.0
    status: int | None = None  # answer with this HTTP error instead
    hang: bool = False  # never answer


class BadDirective(ValueError):
    """A directive that cannot be read; the server answers 400, so that a malformed test does not pass by chance."""


@dataclass(slots=True)
class _Step:
    says: list[str] = field(default_factory=list)
    reply: ScriptedReply = ScriptedReply()
    turns: int = 1


_DIRECTIVE = re.compile(r"\[\[(call|repeat-calls|raw-arguments|say|reason|finish|sleep|status|hang)(?=\s|\]\])\s*")
_WORD = re.compile(r"\S+?(?=\s|\]\])\s*")
_STEP_BREAK = re.compile(r"^[ \t]*---[ \t]*$", re.MULTILINE)
_DECODER = json.JSONDecoder()


def directed_reply(messages: Sequence[JsonObject]) -> ScriptedReply | None:
    """Return the reply that directives ask for, or None if there are none.

    Directives are read from the last user message, or else from the last system or developer message. Each assistant
    turn after the message completes one turn. Raises BadDirective.
    """
    for roles in (("user",), ("system", "developer")):
        turns = 0
        for message in reversed(messages):
            role = message.get("role")
            if role == "assistant":
                turns += 1
            elif role in roles:
                text = text_of(message.get("content"))
                if "[[" in text and (steps := _read_steps(text)):
                    return _at_turn(steps, turns)
                break
    return None


def _at_turn(steps: Sequence[_Step], turn: int) -> ScriptedReply:
    for step in steps:
        if turn < step.turns:
            return replace(step.reply, content="\n".join(step.says))
        turn -= step.turns
    return ScriptedReply(content="Done.")


def _read_steps(text: str) -> list[_Step]:
    """Return the steps of a text, none if it has no directive."""
    steps = []
    for part in _STEP_BREAK.split(text):
        step = _Step()
        found = False
        for name, start in _directives(part):
            found = True
            _apply(step, name, part, start)
        if found:
            steps.append(step)
    return steps


def _directives(text: str) -> Iterator[tuple[str, int]]:
    for match in _DIRECTIVE.finditer(text):
        yield match[1], match.end()


def _apply(step: _Step, name: str, text: str, start: int) -> None:
    reply = step.reply
    match name:
        case "call":
            step.reply = replace(reply, tool_calls=(*reply.tool_calls, _read_call(text, start)))
        case "repeat-calls":
            count, start = _read_word(text, start, name)
            step.turns = int(_read_number(count, name))
            step.reply = replace(reply, tool_calls=(*reply.tool_calls, _read_call(text, start)))
        case "raw-arguments":
            tool, start = _read_word(text, start, name)
            call = ScriptedCall(tool, _read_rest(text, start, name))
            step.reply = replace(reply, tool_calls=(*reply.tool_calls, call))
        case "say":
            step.says.append(_read_rest(text, start, name))
        case "reason":
            step.reply = replace(reply, reasoning=_read_rest(text, start, name))
        case "finish":
            reason = _read_rest(text, start, name)
            if reason not in ("stop", "length"):
                raise BadDirective(f"[[finish {reason}]]: a turn finishes with stop or length")
            step.reply = replace(reply, finish_reason=reason)
        case "sleep":
            step.reply = replace(reply, sleep_s=_read_number(_read_rest(text, start, name), name))
        case "status":
            status = int(_read_number(_read_rest(text, start, name), name))
            if not 400 <= status <= 599:
                raise BadDirective(f"[[status {status}]]: an HTTP error is 400 to 599")
            step.reply = replace(reply, status=status)
        case "hang":
            step.reply = replace(reply, hang=True)


def _read_call(text: str, start: int) -> ScriptedCall:
    tool, start = _read_word(text, start, "call")
    if text.startswith("]]", start):
        return ScriptedCall(tool, "{}")
    try:
        arguments, end = _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        raise BadDirective(f"[[call {tool} …]]: {error}") from None
    if not text.startswith("]]", end) and text[end:].lstrip()[:2] != "]]":
        raise BadDirective(f"[[call {tool} …]]: more than one JSON value, or no ]] after it")
    return ScriptedCall(tool, canonical_arguments(arguments))


def _read_word(text: str, start: int, name: str) -> tuple[str, int]:
    word = _WORD.match(text, start)
    if word is None or text.startswith("]]", start):
        raise BadDirective(f"[[{name} …]]: the name or the closing ]] is missing")
    return word[0].rstrip(), word.end()


def _read_rest(text: str, start: int, name: str) -> str:
    end = text.find("]]", start)
    if end < 0:
        raise BadDirective(f"[[{name} …: no ]] behind it")
    return text[start:end].strip()


def _read_number(text: str, name: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1e6:
        raise BadDirective(f"[[{name} {text}]]: expected a number from 0 on")
    return value
