"""A chat completion made of token ids: rendered, continued, generated from ids, parsed here (`api: tokens`).

For a vLLM with `--enable-scale-out`, seen in 0.32. `/v1/chat/completions/render` gives the prompt's ids and the
sampling parameters as the server understands them, `/inference/v1/generate` generates from ids; `gym.wire.parsers`
reads calls and reasoning out of the text. What comes out has the shape of a chat completion with token ids, so that
everything behind it is that of the chat path.

A turn that follows another one is generated from that turn's exact tokens (`gym.model_client.tokens.splice`), so that a
trajectory is one segment. How its prompt came about is counted:

    first     there were no earlier tokens
    kept      the rendered prompt begins with them as it is: no second rendering
    spliced   earlier tokens, and behind them what is new
    broken    no safe splice; the rendered prompt is taken as it is, and a new segment begins

An answer that is its text is streamed to a caller who wants that; one that parsers read comes as one chunk at its end.

Invariant: ids that were generated are never tokenised again, and nothing is taken for an end of turn that is none.
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

IN_PLACE_CHARS = 16_384  # of a text that is parsed on the event loop
MOST_TEXT_CHARS = 8 * 2**20
_LIMITS = ("max_completion_tokens", "max_tokens")
_STREAM = ("stream", "stream_options")
_UNREADABLE = (KeyError, IndexError, TypeError, ValueError, OverflowError, AttributeError)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCall:
    """One call to one endpoint. `body` is the chat request as the policy wants it.

    `earlier` are the tokens of the turn whose answer is the last assistant message in it; None begins anew.
    `reply_id` makes the ids of its tool calls.
    """

    spec: PolicySpec
    url: EndpointUrl
    body: JsonObject
    earlier: TurnTokens | None
    reply_id: str


class RefusedExchange(Exception):
    """One of the exchanges was refused; it says what a refused chat completion would say."""

    def __init__(self, answered: Answered) -> None:
        super().__init__(f"answered {answered[0]}")
        self.answered = answered


async def complete(post: Post, call: TokenCall, streamed: StreamSink | None = None) -> tuple[JsonObject, Prompt]:
    """The chat completion, and how its prompt came about. Raises NotAnswered, BadCompletion, ModelRejected."""
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
    """A completion that has been handed on as it came."""
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
    """The prompt that begins with the tokens of the turn before."""
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
    """The tools that may be called. Calls that nobody reads would look like a model that makes none."""
    tools: list[JsonObject] = call.body.get("tools") or []
    if tools and call.spec.tool_parser is None and call.body.get("tool_choice") != "none":
        raise ModelRejected(
            "tools are offered to a policy with `api: tokens` and no `tool_parser`: name the one that its server is "
            "started with (--tool-call-parser)"
        )
    return tools


def _render_request(body: JsonObject) -> JsonObject:
    """The chat request without what only concerns its answer."""
    return {name: value for name, value in body.items() if name not in _STREAM}


def _generate_request(call: TokenCall, rendered: JsonObject, prompt_ids: array[int]) -> JsonObject:
    """What `/render` answered, with the prompt and the limit that are meant.

    The rendered `max_tokens` is the room that the rendered prompt leaves; without one the server takes what is left.
    """
    sampling = dict(rendered["sampling_params"])
    sampling.pop("max_tokens", None)
    limit = next((call.body[name] for name in _LIMITS if call.body.get(name) is not None), None)
    if limit is not None:
        sampling["max_tokens"] = limit
    if call.spec.tool_parser is not None or call.spec.reasoning_parser is not None:
        sampling["skip_special_tokens"] = False  # the marks that parsers look for may be such
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
    """Whether the last token is the model's own end of turn, not a limit's, a stop text's or a stop token's."""
    reason = choice.get("stop_reason")
    asked = body.get("stop_token_ids") or ()
    return choice["finish_reason"] == "stop" and not isinstance(reason, str) and reason not in asked


async def _detokenized(post: Post, url: EndpointUrl, choice: JsonObject, *, ended: bool) -> str:
    """The text, of a server that generates tokens only; without what ended it."""
    ids = choice["token_ids"]
    answer = await _asked(post, url.detokenize, {"tokens": ids[:-1] if ended else ids})
    text: str = answer["prompt"]
    reason = choice.get("stop_reason")
    return text[: text.rfind(reason)] if isinstance(reason, str) and reason in text else text


async def _parsed(call: TokenCall, text: str, tools: list[JsonObject]) -> JsonObject:
    """The message that a text is; a long one is read in a thread, and none that is longer than any context."""
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
    """What a chat server would have answered, with `ended` beside vLLM's own additions to a choice.

    Other than there, an answer that a limit cut finishes with `length` though calls could be read out of it.
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
