"""`/v1/chat/completions/render` and `/inference/v1/generate` of the scripted server, as in vLLM 0.32.

The policy's answer to token ids depends on their text: the template's marks identify the speaker. Fields of the chat
request that shape the answer are passed from one call to the other in `sampling_params.extra_args`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import orjson
from aiohttp import web

from gym.jsontypes import JsonObject
from gym.testing.model_server.behaviour import ScriptedModelOptions
from gym.testing.model_server.chat_request import Refused, read_chat_request, read_json, read_max_tokens, read_stop
from gym.testing.model_server.chat_wire import usage
from gym.testing.model_server.generation import Generation, generate, token_limit, token_logprob
from gym.testing.model_server.generation_routes import GenerationRoutes, json_response
from gym.testing.model_server.request_log import TAIL, RequestRecord
from gym.testing.scripted_policy.tokenizer import decode, encode, render, token_text

_SHAPING = ("tool_choice", "parallel_tool_calls", "response_format", "structured_outputs")
_SPOKEN = re.compile(r"<\|im_start\|>(\w+)\n(.*?)(?:<\|im_end\|>|(?=<\|im_start\|>)|\Z)", re.DOTALL)
_ASSISTANT = re.compile(
    r"(?:<think>(?P<reasoning>.*?)</think>)?(?P<content>.*?)(?P<calls>(?:<tool_call>.*)?)", re.DOTALL
)
_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)


class TokenRoutes(GenerationRoutes):
    """Generating calls, including those with token ids; `version_now` is the weights' version."""

    def __init__(self, options: ScriptedModelOptions, version_now: Callable[[], str]) -> None:
        super().__init__(options)
        self._version_now = version_now

    async def render(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/chat/completions/render."""
        return await self._recorded(request, self._render)

    async def generate(self, request: web.Request) -> web.StreamResponse:
        """POST /inference/v1/generate."""
        return await self._recorded(request, self._generate)

    async def _render(self, request: web.Request, record: RequestRecord) -> web.StreamResponse:
        body = read_json(await request.read())
        self.check_caller(request, body)
        read = read_chat_request(body)
        record.model, record.messages = read.model, len(read.messages)
        ids = encode(render(read.messages, read.tools, history=self.options.history))
        limit = token_limit(
            len(ids), read.max_tokens, self.options.max_model_len, lowers_limit=self.options.lowers_limit
        )
        sampling = {
            "temperature": body.get("temperature", 1.0),
            "seed": read.seed,
            "stop": list(read.stop),
            "stop_token_ids": body.get("stop_token_ids") or [],
            "max_tokens": limit,
            "logprobs": read.top_logprobs if read.logprobs else None,
            "skip_special_tokens": True,
            "extra_args": {name: body[name] for name in _SHAPING if name in body},
        }
        return json_response(
            {
                "request_id": f"chatcmpl-{request.headers.get('x-request-id') or record.number}",
                "token_ids": ids,
                "features": None,
                "sampling_params": sampling,
                "model": read.model,
                "stream": read.stream,
                "output_mode": "tokens",
            }
        )

    async def _generate(self, request: web.Request, record: RequestRecord) -> web.StreamResponse:
        body = read_json(await request.read())
        self.check_caller(request, body)
        ids, sampling = _token_ids(body), body.get("sampling_params")
        if not isinstance(sampling, dict):
            raise Refused(400, "body.sampling_params: Field required", kind="Bad Request", param="body.sampling_params")
        record.model = body.get("model")
        longest = self.options.max_model_len
        if len(ids) >= longest:
            raise Refused(400, f"Input length ({len(ids)}) exceeds model's maximum context length ({longest}).")
        text = decode(ids)
        record.prompt_tail = text[-TAIL:]
        messages, tools = conversation(text)
        shaping = sampling.get("extra_args") or {}
        read = read_chat_request(
            {
                **shaping,
                "messages": messages,
                "seed": sampling.get("seed"),
                "max_tokens": min(read_max_tokens(sampling.get("max_tokens")) or longest, longest - len(ids)),
                "stop": list(read_stop(sampling.get("stop"))),
                **({"tools": tools} if tools else {}),
            }
        )
        generation = generate(
            read,
            history="keep",
            max_model_len=longest,
            lowers_limit=True,
            seed=self.options.seed,
            always_reason=self.options.always_reason,
            prompt_ids=ids,
        )
        await self._follow(generation)
        whole = self._generated(body, sampling, generation, read.seed)
        if body.get("stream"):
            record.stream = True
            usage_too = bool((body.get("stream_options") or {}).get("include_usage"))
            return await self.stream(request, record, generation, _chunks(whole, generation, usage_too=usage_too))
        await self._take_time(generation)
        self._count(generation)
        return json_response(whole)

    def _generated(
        self, body: JsonObject, sampling: JsonObject, generation: Generation, seed: int | None
    ) -> JsonObject:
        as_text = self.options.generates_text and body.get("output_mode") == "text"
        logprobs = None
        if sampling.get("logprobs") is not None:
            logprobs = {"content": _logprobs(generation, self.options.seed + (seed or 0), as_text=as_text)}
        choice: JsonObject = {
            "index": 0,
            "finish_reason": generation.finish,
            "stop_reason": generation.stop_reason,
            "token_ids": generation.token_ids,
            "weight_versions": [{"version": self._version_now(), "start": 0, "end": len(generation.token_ids)}],
            "logprobs": logprobs,
        }
        if as_text:
            choice["text"] = generation.text
        return {
            "request_id": f"generate-tokens-{body.get('request_id')}",
            "model": self.options.served_model or body.get("model"),
            "created": int(time.time()),
            "usage": usage(generation) | {"completion_tokens_details": None},
            "prompt_token_ids": generation.prompt_ids if body.get("return_token_ids") else None,
            "choices": [choice],
        }


def _chunks(whole: JsonObject, generation: Generation, *, usage_too: bool) -> Iterator[JsonObject]:
    """Split a whole answer token by token; values known only at the end are in the last chunk."""
    [choice] = whole["choices"]
    logprobs = choice["logprobs"]
    last = len(generation.token_ids) - 1
    start = 0
    for place, token_id in enumerate(generation.token_ids):
        end = start + len(token_text(token_id))
        piece: JsonObject = {
            "index": 0,
            "finish_reason": None,
            "stop_reason": None,
            "weight_versions": None,
            "token_ids": [token_id],
            "logprobs": None if logprobs is None else {"content": [logprobs["content"][place]]},
        }
        if place == last:
            piece |= {name: choice[name] for name in ("finish_reason", "stop_reason", "weight_versions")}
        if "text" in choice:
            piece["text"] = choice["text"][start:end]
        start = end
        yield {"request_id": whole["request_id"], "choices": [piece], "usage": None}
    if usage_too:
        yield {"request_id": whole["request_id"], "choices": [], "usage": whole["usage"]}


def conversation(text: str) -> tuple[list[JsonObject], list[JsonObject] | None]:
    """Return the messages and tools of a prompt's text, without the mark that asks for an answer."""
    messages: list[JsonObject] = []
    tools: list[JsonObject] | None = None
    for role, spoken in _SPOKEN.findall(text.removesuffix("<|im_start|>assistant\n")):
        if role == "tools":
            tools = orjson.loads(spoken)
        elif role == "assistant":
            messages.append(_assistant(spoken))
        else:
            messages.append({"role": role, "content": spoken})
    return messages, tools


def _assistant(text: str) -> JsonObject:
    parts = _ASSISTANT.fullmatch(text)
    message: JsonObject = {"role": "assistant", "content": text}
    if parts is None:
        return message
    try:
        calls = [orjson.loads(call) for call in _CALL.findall(parts["calls"])]
        functions = [{"name": call["name"], "arguments": orjson.dumps(call["arguments"]).decode()} for call in calls]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return message
    message |= {"content": parts["content"], "reasoning": parts["reasoning"]}
    if functions:
        message["tool_calls"] = [
            {"id": f"call_{place}", "type": "function", "function": function}
            for place, function in enumerate(functions)
        ]
    return message


def _token_ids(body: JsonObject) -> list[int]:
    ids = body.get("token_ids")
    if isinstance(ids, list) and ids and all(isinstance(token_id, int) for token_id in ids):
        return ids
    raise Refused(400, "body.token_ids: a list of integers is expected", kind="Bad Request", param="body.token_ids")


def _logprobs(generation: Generation, seed: int, *, as_text: bool) -> list[JsonObject]:
    entries = []
    for place, token_id in enumerate(generation.token_ids):
        named: dict[str, Any] = {"token": token_text(token_id)} if as_text else {"token_id": token_id}
        entries.append({**named, "logprob": token_logprob(token_id, place, seed), "top_logprobs": []})
    return entries
