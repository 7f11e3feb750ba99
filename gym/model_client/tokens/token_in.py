"""Chat completion from token ids (`api: tokens`): rendered by the server, spliced, generated from ids, parsed here.

For a vLLM with `--enable-scale-out`, seen in 0.32. `/v1/chat/completions/render` gives the prompt's ids and the
sampling parameters as the server understands them, `/inference/v1/generate` generates from ids; `gym.wire.parsers`
reads calls and reasoning out of the text. The result has the shape of a chat completion with token ids, so that later
stages are those of the chat path.

A later turn is generated from the exact tokens of the previous one (`gym.model_client.tokens.splice`), so that a
trajectory is one segment. The ways in which prompts are made are counted:

    first     there were no earlier tokens
    kept      the rendered prompt already begins with them: no second rendering
    spliced   earlier tokens followed by the new ones
    broken    no safe splice; the rendered prompt is used unchanged, and a new segment begins

An answer that needs no parser can be streamed; a parsed answer is sent as one chunk at its end.

Invariant: generated ids are never tokenised again, and only a true end of turn is treated as one.
Images and audio are placed by the server in its own rendering only, so a prompt with them is never spliced.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import orjson
from yarl import URL

from gym.errors import ModelRejected
from gym.jsontypes import JsonObject
from gym.model_client.http.streaming import chunks_of
from gym.model_client.http.urls import EndpointUrl
from gym.model_client.tokens.prefix import prefix_of
from gym.model_client.tokens.splice import altered, begins_with, spliced
from gym.model_client.tokens.token_stream import Answered, StreamSink, generate_streamed
from gym.policy import PolicySpec
from gym.trajectory import TurnTokens
from gym.wire.errors import BadCompletion
from gym.wire.parsers import finish_reason, is_read_as_it_is, parse_reply

Prompt = Literal["first", "kept", "spliced", "broken"]
Post = Callable[[URL, JsonObject], Awaitable[Answered]]

IN_PLACE_CHARS = 16_384  # longest text that is parsed on the event loop
MOST_TEXT_CHARS = 8 * 2**20
_LIMITS = ("max_completion_tokens", "max_tokens")
_STREAM = ("stream", "stream_options")
_UNREADABLE = (KeyError, IndexError, TypeError, ValueError, OverflowError, AttributeError)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCall:
    """Call to one endpoint. `body` is the chat request with the policy's settings.

    `earlier` are the tokens of the turn whose answer is the last assistant message in it; None starts a new segment.
    The ids of tool calls derive from `reply_id`.
    """

    spec: PolicySpec
    url: EndpointUrl
    body: JsonObject
    earlier: TurnTokens | None
    reply_id: str


class RefusedExchange(Exception):
    """Refusal of one of the exchanges; treated as the refusal of the chat completion."""

    def __init__(self, answered: Answered) -> None:
        super().__init__(f"answered {answered[0]}")
        self.answered = answered


async def complete(post: Post, call: TokenCall, streamed: StreamSink | None = None) -> tuple[JsonObject, Prompt]:
    """Return the chat completion and how its prompt was made.

    Raises RefusedExchange, BadCompletion, ModelRejected.
    """
    tools = _offered_tools(call)
    rendered = await _asked(post, call.url.render, _render_request(call.body))
    try:
        how: Prompt = "first"
        prompt_ids = array("i", rendered["token_ids"])
        if call.earlier is not None:
            prompt_ids, how = await _continued(post, call, call.earlier, prompt_ids, bool(rendered.get("features")))
        request = _generate_request(call, rendered, prompt_ids)
    except _UNREADABLE as error:
        raise BadCompletion(f"the model server renders something that is no prompt: {error!r}") from error
    if streamed is not None and _is_its_text(call, tools):
        return await _streamed(post, call, streamed, request), how
    generated = await _asked(post, call.url.generate, request)
    try:
        [choice] = generated["choices"]
        ended = _ended(choice, call.body)
        text = choice.get("text")
        if text is None:
            text = await _detokenized(post, call.url, choice, ended=ended)
        message = await _parsed(call, text, tools)
        completion = _completion(call, generated, choice, message, request["token_ids"], ended=ended)
    except _UNREADABLE as error:
        raise BadCompletion(f"the model server generates something that is no answer: {error!r}") from error
    if streamed is not None:
        await streamed.on_chunks(chunks_of(completion))
    return completion, how


async def _streamed(post: Post, call: TokenCall, streamed: StreamSink, request: JsonObject) -> JsonObject:
    """Return a completion whose chunks have been passed on while it was generated."""
    head = {"id": f"chatcmpl-{call.reply_id}", "created": 0, "model": call.spec.model}
    reply = await generate_streamed(streamed, call.url.generate, request, head)
    if reply.refused is not None:
        raise RefusedExchange(reply.refused)
    completion = reply.completion
    [choice] = completion["choices"]
    choice["ended"] = _ended(choice, call.body)
    completion["prompt_token_ids"] = request["token_ids"]
    if not reply.texts:
        try:
            choice["message"]["content"] = await _detokenized(post, call.url, choice, ended=choice["ended"])
        except _UNREADABLE as error:
            raise BadCompletion(f"the model server generates something that is no answer: {error!r}") from error
        await streamed.on_chunks(chunks_of(completion))
    return completion


async def _continued(
    post: Post, call: TokenCall, turn: TurnTokens, whole: array[int], has_media: bool
) -> tuple[array[int], Prompt]:
    """Return the prompt that continues the tokens of the previous turn, if possible, and how it was made."""
    earlier = prefix_of(turn)
    if begins_with(whole, earlier):
        return whole, "kept"
    changed = None if has_media else altered(call.body["messages"])
    if changed is None:
        return whole, "broken"
    messages, called = changed
    other = await _asked(post, call.url.render, _render_request({**call.body, "messages": messages}))
    prompt_ids = spliced(earlier, whole, array("i", other["token_ids"]), ended=turn.ended, called=called)
    return (whole, "broken") if prompt_ids is None else (prompt_ids, "spliced")


async def _asked(post: Post, url: URL, body: JsonObject) -> JsonObject:
    status, retry_after, raw = await post(url, body)
    if status != 200:
        raise RefusedExchange((status, retry_after, raw))
    try:
        answer = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise BadCompletion(f"{url.path} answers with something that is no JSON") from error
    if not isinstance(answer, dict):
        raise BadCompletion(f"{url.path} answers with something that is no JSON object")
    return answer


def _offered_tools(call: TokenCall) -> list[JsonObject]:
    """Return the tools that may be called. Raises ModelRejected without a parser: calls would go unnoticed."""
    tools: list[JsonObject] = call.body.get("tools") or []
    if tools and call.spec.tool_parser is None and call.body.get("tool_choice") != "none":
        raise ModelRejected(
            "tools are offered to a policy with `api: tokens` and no `tool_parser`: name the one that its server is "
            "started with (--tool-call-parser)"
        )
    return tools


def _render_request(body: JsonObject) -> JsonObject:
    """Return the chat request without the fields that only concern its answer."""
    return {name: value for name, value in body.items() if name not in _STREAM}


def _generate_request(call: TokenCall, rendered: JsonObject, prompt_ids: array[int]) -> JsonObject:
    """Return the answer of `/render` with the actual prompt and token limit.

    The rendered `max_tokens` is the room after the rendered prompt; without one the server uses all remaining room.
    """
    sampling = dict(rendered["sampling_params"])
    sampling.pop("max_tokens", None)
    limit = next((call.body[name] for name in _LIMITS if call.body.get(name) is not None), None)
    if limit is not None:
        sampling["max_tokens"] = limit
    if call.spec.tool_parser is not None or call.spec.reasoning_parser is not None:
        sampling["skip_special_tokens"] = False  # the markers that parsers look for may be special tokens
    request = {name: value for name, value in rendered.items() if value is not None and name != "token_offsets"}
    changes = {"token_ids": prompt_ids.tolist(), "sampling_params": sampling, "output_mode": "text", "stream": False}
    return request | changes


def _is_its_text(call: TokenCall, tools: list[JsonObject]) -> bool:
    return is_read_as_it_is(
        tool_parser=call.spec.tool_parser,
        reasoning_parser=call.spec.reasoning_parser,
        tools=tools,
        thinking=_thinks(call),
    )


def _thinks(call: TokenCall) -> bool:
    return (call.body.get("chat_template_kwargs") or {}).get("enable_thinking") is not False


def _ended(choice: JsonObject, body: JsonObject) -> bool:
    """Return whether the model itself ended the turn, not a limit, a stop text or a stop token."""
    reason = choice.get("stop_reason")
    asked = body.get("stop_token_ids") or ()
    return choice["finish_reason"] == "stop" and not isinstance(reason, str) and reason not in asked


async def _detokenized(post: Post, url: EndpointUrl, choice: JsonObject, *, ended: bool) -> str:
    """Return the text from a server that generates tokens only, without the end token or stop text."""
    ids = choice["token_ids"]
    answer = await _asked(post, url.detokenize, {"tokens": ids[:-1] if ended else ids})
    text: str = answer["prompt"]
    reason = choice.get("stop_reason")
    return text[: text.rfind(reason)] if isinstance(reason, str) and reason in text else text


async def _parsed(call: TokenCall, text: str, tools: list[JsonObject]) -> JsonObject:
    """Parse a text into a message; a long one in a thread. Raises ValueError above `MOST_TEXT_CHARS`."""
    if len(text) > MOST_TEXT_CHARS:
        raise ValueError(f"its text has {len(text)} characters, more than the {MOST_TEXT_CHARS} that are read")
    parse = partial(
        parse_reply,
        text,
        tool_parser=call.spec.tool_parser,
        reasoning_parser=call.spec.reasoning_parser,
        tools=tools,
        id_prefix=call.reply_id,
        tool_choice=call.body.get("tool_choice"),
        thinking=_thinks(call),
    )
    return parse() if len(text) <= IN_PLACE_CHARS else await asyncio.to_thread(parse)


def _completion(
    call: TokenCall,
    generated: JsonObject,
    choice: JsonObject,
    message: JsonObject,
    prompt_ids: list[int],
    *,
    ended: bool,
) -> JsonObject:
    """Build the answer of a chat server, with `ended` beside vLLM's additions to a choice.

    Unlike there, an answer cut by a limit finishes with `length` even if calls could be read from it.
    """
    stopped = choice["finish_reason"]
    tool_choice = call.body.get("tool_choice")
    kept: dict[str, Any] = {name: choice.get(name) for name in ("stop_reason", "logprobs", "weight_versions")}
    return {
        "id": f"chatcmpl-{call.reply_id}",
        "object": "chat.completion",
        "created": generated.get("created") or 0,
        "model": generated.get("model") or call.spec.model,
        "choices": [
            {
                "index": 0,
                "message": message,
                "finish_reason": finish_reason(message, "stop", tool_choice) if stopped == "stop" else stopped,
                "token_ids": choice["token_ids"],
                "ended": ended,
                **kept,
            }
        ],
        "usage": generated.get("usage"),
        "prompt_token_ids": prompt_ids,
    }
