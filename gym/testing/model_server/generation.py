"""Generation of the scripted model for a request: token ids, and the parts of their text.

A generation is text with marks, as a real model's is. `regions` locates reasoning, content and tool calls in it, so
that a streamed answer and a whole one are cut from the same text.
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypedDict

import orjson

from gym.testing.model_server.chat_request import ChatRequest, Refused
from gym.testing.scripted_policy.minimal_json import minimal_value
from gym.testing.scripted_policy.script import BadDirective, ScriptedCall, ScriptedReply, scripted_reply, tool_names
from gym.testing.scripted_policy.tokenizer import (
    END_ID,
    History,
    call_text,
    canonical_arguments,
    decode,
    encode,
    render,
    token_text,
)

KV_BLOCK = 16  # vLLM's prefix cache counts whole blocks

RegionKind = Literal["reasoning", "content", "name", "arguments", "call_end"]


@dataclass(frozen=True, slots=True)
class Region:
    """A part [start, end) of the generated text; `call` is the index of the tool call."""

    kind: RegionKind
    start: int
    end: int
    call: int = 0


class Message(TypedDict):
    """The parts of an assistant message."""

    reasoning: str | None
    content: str | None
    calls: list[ScriptedCall]


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One generation. `text` is its visible text, without the end mark; `finish` is the engine's reason."""

    prompt_ids: list[int]
    token_ids: list[int]
    text: str
    regions: tuple[Region, ...]
    reply: ScriptedReply
    finish: Literal["stop", "length"]
    stop_reason: str | None
    cached_tokens: int

    def message(self) -> Message:
        """Parse the text into a message; a truncated call leaves the text as plain content."""
        shown = len(self.text)
        if not self.regions or shown >= self.regions[-1].end:
            return {
                "reasoning": self.reply.reasoning or None,
                "content": self.reply.content or None,
                "calls": list(self.reply.tool_calls),
            }
        parts = {region.kind: self.text[region.start : region.end] for region in self.regions if region.call == 0}
        begun = sum(region.kind == "name" and region.start - len("<tool_call>") < shown for region in self.regions)
        ended = sum(region.kind == "call_end" and region.end <= shown for region in self.regions)
        content = parts.get("content")
        if begun > ended:
            after = next((region.end for region in self.regions if region.kind == "reasoning"), -len("</think>"))
            content, ended = self.text[after + len("</think>") :], 0
        calls = list(self.reply.tool_calls[:ended])
        return {"reasoning": parts.get("reasoning") or None, "content": content or None, "calls": calls}

    @property
    def reasoning_tokens(self) -> int:
        """Count the tokens of the reasoning, without its marks."""
        return len(encode(self.reply.reasoning)) if self.reply.reasoning else 0

    def call_id(self, call: int) -> str:
        """Return the id of a tool call, the same for the same prompt and generation."""
        check = zlib.crc32(array("i", self.prompt_ids[-64:] + self.token_ids))
        return f"chatcmpl-tool-{len(self.prompt_ids):08x}{check:08x}{call:04x}"


def generate(
    request: ChatRequest,
    *,
    history: History,
    max_model_len: int,
    lowers_limit: bool,
    seed: int,
    always_reason: bool,
    prompt_ids: list[int] | None = None,
) -> Generation:
    """Generate the reply to a chat request, or to the equivalent prompt. Raises Refused as vLLM would."""
    text = render(request.messages, request.tools, history=history) if prompt_ids is None else decode(prompt_ids)
    if prompt_ids is None:
        prompt_ids = encode(text)
    limit = token_limit(len(prompt_ids), request.max_tokens, max_model_len, lowers_limit=lowers_limit)
    try:
        reply = _reply(request, seed, always_reason)
    except BadDirective as error:
        raise Refused(400, str(error), param="messages") from None
    generated, regions = _write(reply)
    return _cut(
        prompt_ids, generated, regions, reply, limit=limit, stop=request.stop, cached=_cached(text, len(prompt_ids))
    )


def complete(
    prompt: str | Sequence[int],
    *,
    max_tokens: int,
    stop: tuple[str, ...],
    seed: int,
    max_model_len: int,
    lowers_limit: bool,
) -> Generation:
    """Generate a plain completion: the policy's answer to a user message with the text of the prompt."""
    prompt_ids = encode(prompt) if isinstance(prompt, str) else list(prompt)
    limit = token_limit(len(prompt_ids), max_tokens, max_model_len, lowers_limit=lowers_limit)
    said = prompt if isinstance(prompt, str) else decode(prompt_ids)
    reply = scripted_reply([{"role": "user", "content": said}], None, seed)
    generated, regions = _write(reply)
    return _cut(prompt_ids, generated, regions, reply, limit=limit, stop=stop, cached=0)


def token_limit(prompt_tokens: int, max_tokens: int | None, max_model_len: int, *, lowers_limit: bool) -> int:
    """Return how many tokens may be generated. Raises Refused, with vLLM's text, if the context is too short.

    vLLM 0.32 refuses a prompt that leaves no space, and lowers a limit that does not fit; earlier versions refused that
    too.
    """
    wanted = max_tokens or 0
    if wanted > max_model_len:
        raise Refused(
            400,
            f"max_tokens={wanted} cannot be greater than max_model_len={max_model_len}. "
            f"Please request fewer output tokens. (parameter=max_tokens, value={wanted})",
            param="max_tokens",
        )
    room = max_model_len - wanted
    if lowers_limit:
        _refuse_long(prompt_tokens, max_model_len)
    elif prompt_tokens > room or prompt_tokens >= max_model_len:
        # the prompt is tokenised up to one token beyond the limit, so that its true length is not known
        seen = room + 1
        raise Refused(
            400,
            f"This model's maximum context length is {max_model_len} tokens. However, you requested {wanted} output "
            f"tokens and your prompt contains at least {seen} input tokens, for a total of at least {seen + wanted} "
            "tokens. Please reduce the length of the input prompt or the number of requested output tokens. "
            f"(parameter=input_tokens, value={seen})",
            param="input_tokens",
        )
    return min(wanted or max_model_len, max_model_len - prompt_tokens)


def _refuse_long(prompt_tokens: int, max_model_len: int) -> None:
    if prompt_tokens > max_model_len:
        seen = max_model_len + 1
        raise Refused(
            400,
            f"This model's maximum context length is {max_model_len} tokens. However, your prompt contains at least "
            f"{seen} input tokens, which exceeds this limit even without any output tokens. Please reduce the length "
            f"of the input prompt. (parameter=input_tokens, value={seen})",
            param="input_tokens",
        )
    if prompt_tokens == max_model_len:
        raise Refused(400, "max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)", param="max_tokens")


def token_logprob(token_id: int, place: int, seed: int) -> float:
    """Return a log-probability determined by the token, its position and the seed: in (-1, 0]."""
    mixed = (token_id * 2_654_435_761 + place * 2_246_822_519 + seed * 3_266_489_917) & 0xFFFFFFFF
    return -((mixed >> 12) & 0xFFFF) / 65_536


def _reply(request: ChatRequest, seed: int, always_reason: bool) -> ScriptedReply:
    tools = None if request.tool_choice == "none" else request.tools
    reply = scripted_reply(
        request.messages, tools, seed + (request.seed or 0), always_reason=always_reason and not request.shape
    )
    if tools is None and reply.tool_calls:
        reply = replace(reply, tool_calls=())
    if request.tool_choice in ("required", "named"):
        wanted = request.named_tool
        calls = tuple(call for call in reply.tool_calls if wanted in (None, call.name))
        if not calls:
            calls = (_minimal_call(request.tools or [], wanted),)
        reply = replace(reply, tool_calls=calls, content="")
    if not request.parallel and len(reply.tool_calls) > 1:
        reply = replace(reply, tool_calls=reply.tool_calls[:1])
    if request.shape is not None and not reply.tool_calls:
        reply = replace(reply, content=_shaped(reply.content, request.shape))
    return reply


def _minimal_call(tools: Sequence[dict[str, Any]], wanted: str | None) -> ScriptedCall:
    place = tool_names(tools).index(wanted) if wanted is not None else 0
    function = tools[place].get("function") or {}
    value = minimal_value(function.get("parameters") or {"type": "object"})
    return ScriptedCall(str(function.get("name", "")), canonical_arguments(value))


def _shaped(content: str, shape: dict[str, Any]) -> str:
    """Return the content if it is already JSON, as a directive may set it, else the smallest value of the shape."""
    if "choice" in shape:
        return content if content in shape["choice"] else str(shape["choice"][0])
    try:
        orjson.loads(content)
    except orjson.JSONDecodeError:
        return canonical_arguments(minimal_value(shape["schema"]))
    return content


def _write(reply: ScriptedReply) -> tuple[str, tuple[Region, ...]]:
    """Return the text that a model writes for a reply."""
    if not reply.tool_calls and not reply.reasoning:
        return reply.content, (Region("content", 0, len(reply.content)),)
    parts: list[str] = []
    regions: list[Region] = []
    end = 0

    def write(text: str, kind: RegionKind | None = None, call: int = 0) -> None:
        nonlocal end
        parts.append(text)
        if kind is not None:
            regions.append(Region(kind, end, end + len(text), call))
        end += len(text)

    if reply.reasoning:
        write("<think>")
        write(reply.reasoning, "reasoning")
        write("</think>")
    write(reply.content, "content")
    for place, call in enumerate(reply.tool_calls):
        head, arguments, tail = call_text(call.name, call.arguments)
        write("<tool_call>")
        write(head, "name", place)
        write(arguments, "arguments", place)
        write(tail)
        write("</tool_call>", "call_end", place)
    return "".join(parts), tuple(regions)


def _cut(
    prompt_ids: list[int],
    text: str,
    regions: tuple[Region, ...],
    reply: ScriptedReply,
    *,
    limit: int,
    stop: tuple[str, ...],
    cached: int,
) -> Generation:
    """Apply stop texts and the token limit, in the order of the tokens."""
    ids = encode(text)
    finish: Literal["stop", "length"] = "length" if reply.finish_reason == "length" else "stop"
    stop_reason: str | None = None
    shown = text
    found = [(text.find(word), word) for word in stop if word and word in text]
    if found:
        place, stop_reason = min(found)
        ids = _covering(ids, place + len(stop_reason))
        shown = text[:place]
        finish = "stop"
    elif finish == "stop" or not ids:
        ids.append(END_ID)
    if len(ids) > limit:
        ids = ids[:limit]
        whole = decode(ids)
        shown, finish, stop_reason = whole[: len(shown)] if stop_reason else whole, "length", None
    return Generation(
        prompt_ids=prompt_ids,
        token_ids=ids,
        text=shown,
        regions=regions,
        reply=reply,
        finish=finish,
        stop_reason=stop_reason,
        cached_tokens=cached,
    )


def _covering(ids: list[int], end: int) -> list[int]:
    """Return the first tokens, whose text reaches to `end`."""
    length = 0
    for count, token_id in enumerate(ids, 1):
        length += len(token_text(token_id))
        if length >= end:
            return ids[:count]
    return ids


def _cached(text: str, prompt_tokens: int) -> int:
    """Return how many tokens an earlier turn has left in the prefix cache, in whole blocks."""
    last_turn = text.rfind("<|im_start|>assistant\n", 0, -len("<|im_start|>assistant\n"))
    if last_turn < 0:
        return 0
    return prompt_tokens * last_turn // len(text) // KV_BLOCK * KV_BLOCK
