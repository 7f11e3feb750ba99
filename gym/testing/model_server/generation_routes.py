"""`/v1/chat/completions` and `/v1/completions` of the scripted server: faults, delays, responses, and their log.

aiohttp cancels a handler when its client disconnects, so that an abandoned call is recorded as one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import orjson
from aiohttp import web

from gym.jsontypes import JsonObject
from gym.testing.model_server.behaviour import Behaviour, Faults, ScriptedModelOptions
from gym.testing.model_server.chat_request import (
    ChatRequest,
    Refused,
    read_chat_request,
    read_json,
    read_max_tokens,
    read_stop,
)
from gym.testing.model_server.chat_wire import ScriptedAnswer
from gym.testing.model_server.generation import Generation, complete, generate
from gym.testing.model_server.prefix import prompt_for
from gym.testing.model_server.request_log import TAIL, RequestLog, RequestRecord
from gym.testing.scripted_policy.tokenizer import text_of

DEFAULT_COMPLETION_TOKENS = 16
REMEMBERED = 512  # requests
REMEMBERED_BYTES = 16_384  # longer ones are computed each time
_NAMES = {500: "InternalServerError", 503: "ServiceUnavailableError", 429: "RateLimitError", 404: "NotFoundError"}
_DONE = b"data: [DONE]\n\n"
_Answering = Callable[[web.Request, RequestRecord], Awaitable[web.StreamResponse]]


class GenerationRoutes:
    """Generating calls of one server."""

    def __init__(self, options: ScriptedModelOptions) -> None:
        self.options = options
        self.behaviour = Behaviour.of(options)
        self.log = RequestLog(options.log_size, options.log_file)
        self.closing = asyncio.Event()
        self._faults = Faults(options.seed)
        self._worked_out: dict[bytes, tuple[ChatRequest, Generation]] = {}

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/chat/completions."""
        return await self._recorded(request, self._chat)

    async def completions(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/completions."""
        return await self._recorded(request, self._completions)

    async def _recorded(self, request: web.Request, answering: _Answering) -> web.StreamResponse:
        record = self.log.begin(request.path, request.headers)
        try:
            await self._inject(self._faults.draw(self.behaviour))
            response = await answering(request, record)
            record.status = response.status
        except Refused as refused:
            record.status = refused.status
            response = self._refusal(refused)
        except asyncio.CancelledError:
            record.disconnected = not self.closing.is_set()
            raise
        except ConnectionResetError:
            record.disconnected = True
            raise
        finally:
            self.log.end(record)
        return response

    async def _chat(self, request: web.Request, record: RequestRecord) -> web.StreamResponse:
        raw = await request.read()
        body = read_json(raw)
        describe(record, body)
        self.check_caller(request, body)
        read, generation = self._work_out(raw, body)
        await self._follow(generation)
        answer = self._answer(request, record, "chatcmpl-", read.seed)
        if read.stream:
            return await self.stream(request, record, generation, answer.chat_chunks(read, generation))
        await self._take_time(generation)
        self._count(generation)
        return json_response(answer.chat(read, generation))

    def _work_out(self, raw: bytes, body: JsonObject) -> tuple[ChatRequest, Generation]:
        """Read a chat request and generate; identical bytes, as a group's samples send them, are computed once."""
        known = self._worked_out.get(raw)
        if known is not None:
            return known
        read = read_chat_request(body)
        options = self.options
        generation = generate(
            read,
            history=options.history,
            max_model_len=options.max_model_len,
            lowers_limit=options.lowers_limit,
            seed=options.seed,
            always_reason=options.always_reason,
            prompt_ids=prompt_for(
                body, read.messages, read.tools, history=options.history, mode=options.required_prefix
            ),
        )
        if len(raw) <= REMEMBERED_BYTES:
            if len(self._worked_out) >= REMEMBERED:
                self._worked_out.clear()
            self._worked_out[raw] = read, generation
        return read, generation

    async def _completions(self, request: web.Request, record: RequestRecord) -> web.StreamResponse:
        body = read_json(await request.read())
        describe(record, body)
        self.check_caller(request, body)
        seed = body.get("seed") or 0
        generation = complete(
            _prompt(body),
            max_tokens=read_max_tokens(body.get("max_tokens")) or DEFAULT_COMPLETION_TOKENS,
            stop=read_stop(body.get("stop")),
            seed=self.options.seed + seed,
            max_model_len=self.options.max_model_len,
            lowers_limit=self.options.lowers_limit,
        )
        await self._follow(generation)
        await self._take_time(generation)
        self._count(generation)
        answer = self._answer(request, record, "cmpl-", seed)
        whole = answer.completion(
            generation, logprobs=body.get("logprobs"), return_token_ids=bool(body.get("return_token_ids"))
        )
        if body.get("stream"):
            return await self.stream(request, record, generation, iter([whole]))
        return json_response(whole)

    def check_caller(self, request: web.Request, body: JsonObject) -> None:
        """Refuse a wrong key or model."""
        check_key(request, self.options.api_key)
        served = self.options.served_model
        model = body.get("model")
        if served is not None and model and model != served:
            raise Refused(404, f"The model `{model}` does not exist.", kind="NotFoundError", param="model")

    async def _inject(self, fault: str | None) -> None:
        behaviour = self.behaviour
        if fault is None and behaviour.status is None and not behaviour.fail_next:
            return
        if behaviour.fail_next:
            self.behaviour = behaviour.changed({"fail_next": behaviour.fail_next - 1})
            raise _failure(behaviour.fail_status)
        if behaviour.status is not None:
            raise _failure(behaviour.status)
        if fault == "hang":
            await self._hang()
        raise _failure(429 if fault == "rate_limit" else 500)

    async def _hang(self) -> None:
        await self.closing.wait()
        raise asyncio.CancelledError

    async def _follow(self, generation: Generation) -> None:
        """Carry out a directive to the server."""
        reply = generation.reply
        if reply.sleep_s:
            await asyncio.sleep(reply.sleep_s)
        if reply.hang:
            await self._hang()
        if reply.status is not None:
            raise _failure(reply.status)

    async def _take_time(self, generation: Generation) -> None:
        seconds = self.behaviour.latency_s + self.behaviour.token_latency_s * len(generation.token_ids)
        if seconds:
            await asyncio.sleep(seconds)

    async def stream(
        self, request: web.Request, record: RequestRecord, generation: Generation, chunks: Iterator[JsonObject]
    ) -> web.StreamResponse:
        """Send chunks at the times of their tokens."""
        return await self.stream_bytes(request, record, generation, map(_event, chunks), tail=_DONE)

    async def stream_bytes(
        self,
        request: web.Request,
        record: RequestRecord,
        generation: Generation,
        pieces: Iterator[bytes],
        *,
        tail: bytes,
    ) -> web.StreamResponse:
        """Send the bytes of each token at its time, and then the tail."""
        if self.behaviour.latency_s:
            await asyncio.sleep(self.behaviour.latency_s)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        record.status = response.status
        async for data in self._paced(pieces, tail):
            await response.write(data)
        await response.write_eof()
        self._count(generation)
        return response

    async def _paced(self, pieces: Iterator[bytes], tail: bytes) -> AsyncIterator[bytes]:
        """Yield the events, each after its token's time; all at once if tokens take no time."""
        pause_s = self.behaviour.token_latency_s
        if not pause_s:
            yield b"".join([*pieces, tail])
            return
        for place, piece in enumerate(pieces):
            if place:
                await asyncio.sleep(pause_s)
            yield piece
        if tail:
            yield tail

    def _answer(self, request: web.Request, record: RequestRecord, prefix: str, seed: int | None) -> ScriptedAnswer:
        options = self.options
        return ScriptedAnswer(
            id=prefix + (request.headers.get("x-request-id") or f"{record.number:032x}"),
            created=int(time.time()),
            model=options.served_model or record.model or "scripted",
            seed=options.seed + (seed or 0),
            token_ids=options.token_ids,
            reasoning_field=options.reasoning_field,
        )

    def _count(self, generation: Generation) -> None:
        self.log.count(len(generation.prompt_ids), len(generation.token_ids), generation.finish)

    def _refusal(self, refused: Refused) -> web.Response:
        response = json_response(refused.body, status=refused.status)
        if refused.status in (429, 503):
            response.headers["Retry-After"] = f"{self.behaviour.retry_after_s:g}"
        return response


def json_response(body: Any, *, status: int = 200) -> web.Response:
    """Return a JSON response."""
    return web.Response(body=orjson.dumps(body), status=status, content_type="application/json")


def check_key(request: web.Request, key: str | None) -> None:
    """Refuse a call without the server's key, as vLLM does. Raises Refused."""
    if key is not None and request.headers.get("Authorization") != f"Bearer {key}":
        refused = Refused(401, "Unauthorized")
        refused.body = {"error": "Unauthorized"}
        raise refused


def _event(chunk: JsonObject) -> bytes:
    return b"data: %b\n\n" % orjson.dumps(chunk)


def _failure(status: int) -> Refused:
    kind = _NAMES.get(status, "InternalServerError" if status >= 500 else "BadRequestError")
    return Refused(status, f"The scripted server was told to answer {status}.", kind=kind)


def describe(record: RequestRecord, body: JsonObject) -> None:
    """Record the content of a request."""
    model = body.get("model")
    record.model = model if isinstance(model, str) else None
    record.stream = bool(body.get("stream"))
    messages = body.get("messages")
    if isinstance(messages, list) and messages:
        record.messages = len(messages)
        last = messages[-1]
        record.prompt_tail = text_of(last.get("content"))[-TAIL:] if isinstance(last, dict) else ""
    elif isinstance(body.get("prompt"), str):
        record.prompt_tail = body["prompt"][-TAIL:]


def _prompt(body: JsonObject) -> str | list[int]:
    """Return the prompt of a plain completion: a text or token ids, alone or as a list of one. Raises Refused."""
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list) and prompt and all(isinstance(token, int) for token in prompt):
        return prompt
    raise Refused(400, "prompt: a text or a list of token ids is expected", kind="Bad Request", param="prompt")
