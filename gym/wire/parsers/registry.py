"""The parsers by the names that vLLM gives them, and the message that a reply becomes.

A server that is driven with token ids answers with token ids: what its own parsers (`--tool-call-parser`,
`--reasoning-parser`) make of a text is made here, into the message of `/v1/chat/completions` but for call ids.
Composition as in vLLM's `parser/abstract_parser.py` (DelegatingParser) and
`entrypoints/openai/chat_completion/serving.py`, with strict tool calling as it is by default.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from gym.errors import SettingsError
from gym.jsontypes import JsonObject
from gym.wire.parsers import forced, json_calls, pythonic, qwen3, reasoning
from gym.wire.parsers.found import NotACall, ParsedCalls, ToolParser

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]
ToolChoice = str | JsonObject | None


@dataclass(frozen=True, slots=True)
class _Format:
    """A tool format.

    `native`: a demanded call is written in it too, else as bare JSON. `strips`: it takes its markup out of a reply
    without calls, and reads `</think>` itself.
    """

    parse: ToolParser
    native: bool = True
    strips: bool = False


_QWEN3 = _Format(partial(qwen3.xml_calls, keep_think=False), strips=True)
_TOOLS = {
    "hermes": _Format(json_calls.hermes),
    "qwen3_json": _Format(json_calls.hermes),
    "llama3_json": _Format(json_calls.llama_json),
    "llama4_json": _Format(json_calls.llama_json),
    "pythonic": _Format(pythonic.pythonic, native=False),
    "llama4_pythonic": _Format(pythonic.llama4_pythonic, native=False),
    "qwen3_coder": _QWEN3,
    "qwen3_xml": _QWEN3,
}
_REASONING: dict[str, Callable[[str], tuple[str | None, str | None]]] = {
    "deepseek_r1": reasoning.deepseek_r1,
    "qwen3": qwen3.split_reasoning,
}
TOOL_PARSERS = frozenset(_TOOLS)
REASONING_PARSERS = frozenset(_REASONING)


def parse_reply(
    text: str,
    *,
    tool_parser: str | None,
    reasoning_parser: str | None,
    tools: list[JsonObject],
    id_prefix: str,
    tool_choice: ToolChoice = None,
    thinking: bool = True,
) -> JsonObject:
    """The assistant message of a finished reply: `role`, `content` (may be `None`), `reasoning`, `tool_calls`.

    `text` keeps its special tokens, except the one that ended it. `tools` are Chat Completions tools; `tool_choice` is
    the request's, `None` meaning "auto" with tools and "none" without. `thinking` is the template's `enable_thinking`.
    The last two keys are there only when there is something to say. Raises SettingsError for a parser unknown here.
    """
    split, form = _looked_up(reasoning_parser, tool_parser)
    thought: str | None = None
    content: str | None = text
    if split is not None and (thinking or reasoning_parser != "qwen3"):
        thought, content = split(text)
    choice = tool_choice or ("auto" if tools else "none")
    found = _found(form, content, tools, choice, reasoning_parser)
    content = found.content
    if isinstance(choice, dict) or choice == "required":
        content = content or ""
    message: JsonObject = {"role": "assistant", "content": content}
    if thought is not None:
        message["reasoning"] = thought
    if found.calls:
        message["tool_calls"] = [
            {
                "id": f"call_{id_prefix}_{number}",
                "type": "function",
                "function": {"name": name, "arguments": arguments},
            }
            for number, (name, arguments) in enumerate(found.calls)
        ]
    return message


def is_read_as_it_is(
    *, tool_parser: str | None, reasoning_parser: str | None, tools: list[JsonObject], thinking: bool = True
) -> bool:
    """Whether `parse_reply` makes the whole text the content, whatever it is, so that it may be shown as it comes."""
    split, form = _looked_up(reasoning_parser, tool_parser)
    if split is not None and (thinking or reasoning_parser != "qwen3"):
        return False
    return form is None or not (tools or form.strips)


def finish_reason(message: JsonObject, stopped: FinishReason, tool_choice: ToolChoice = None) -> FinishReason:
    """How the answer ended, from how the generation ended: a call that the model chose to make is "tool_calls".

    As the server has it, a named call is "stop", and "required" is "tool_calls" whenever the text was finished.
    """
    if isinstance(tool_choice, dict) or tool_choice == "none":
        return stopped
    if tool_choice == "required":
        return "tool_calls" if stopped == "stop" else stopped
    return "tool_calls" if message.get("tool_calls") else stopped


def _looked_up(
    reasoning_parser: str | None, tool_parser: str | None
) -> tuple[Callable[[str], tuple[str | None, str | None]] | None, _Format | None]:
    for name, known, kind in ((tool_parser, _TOOLS, "tool"), (reasoning_parser, _REASONING, "reasoning")):
        if name is not None and name not in known:
            raise SettingsError(f"there is no {kind} parser {name!r} here; there are {', '.join(sorted(known))}")
    return (
        None if reasoning_parser is None else _REASONING[reasoning_parser],
        None if tool_parser is None else _TOOLS[tool_parser],
    )


def _found(
    form: _Format | None, content: str | None, tools: list[JsonObject], choice: str | JsonObject, reasoning: str | None
) -> ParsedCalls:
    """The calls and the content that is left, under what the request allowed."""
    if form is None:
        return ParsedCalls((), content)
    strips = form.strips and reasoning in (None, "qwen3")
    parse: ToolParser = partial(qwen3.xml_calls, keep_think=reasoning is None) if form.strips else form.parse
    if choice == "none":
        if not strips:
            return ParsedCalls((), content)
        if tools:
            return ParsedCalls((), qwen3.text_outside_calls(content or "", keep_think=reasoning is None))
        return ParsedCalls((), parse(content or "", tools).content)
    if choice != "auto" and not form.native:
        return forced.calls(content, choice)
    try:
        found = parse(content or "", tools)
    except NotACall:
        return ParsedCalls((), content)
    if found.calls:
        return ParsedCalls(found.calls, found.content if (found.content or "").strip() else None)
    if choice != "auto" and not (content or "").strip():
        return ParsedCalls((), None)
    return ParsedCalls((), found.content if strips else content)
