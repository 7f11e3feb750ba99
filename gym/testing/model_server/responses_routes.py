"""`/v1/responses` of the scripted server, as in vLLM 0.32 without a store.

The content is that of `/v1/chat/completions` for the same conversation.
"""

from __future__ import annotations

import time
from dataclasses import replace

from aiohttp import web

from gym.jsontypes import JsonObject
from gym.testing.model_server.chat_request import ChatRequest, Refused, read_chat_request, read_json
from gym.testing.model_server.generation import generate
from gym.testing.model_server.generation_routes import describe, json_response
from gym.testing.model_server.request_log import RequestRecord
from gym.testing.model_server.responses_wire import ResponseAnswer
from gym.testing.model_server.token_routes import TokenRoutes
from gym.wire import sse
from gym.wire.errors import WireError
from gym.wire.passthrough.reply import ASKED
from gym.wire.responses.items import to_chat_messages
from gym.wire.responses.request import LOGPROBS
from gym.wire.tools import response_format

_INCLUDABLE = frozenset(
    {
        "code_interpreter_call.outputs",
        "computer_call_output.output.image_url",
        "file_search_call.results",
        "message.input_image.image_url",
        LOGPROBS,
        "reasoning.encrypted_content",
    }
)
_SHARED = ("model", "stop", "seed", "structured_outputs", "parallel_tool_calls")


class ResponsesRoutes(TokenRoutes):
    """All generating calls."""

    async def responses(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/responses."""
        return await self._recorded(request, self._responses)

    async def _responses(self, request: web.Request, record: RequestRecord) -> web.StreamResponse:
        body = read_json(await request.read())
        self.check_caller(request, body)
        read = self._read(record, body)
        options = self.options
        generation = generate(
            read,
            history=options.history,
            max_model_len=options.max_model_len,
            lowers_limit=options.lowers_limit,
            seed=options.seed,
            always_reason=options.always_reason,
        )
        await self._follow(generation)
        chat = self._answer(request, record, "", read.seed)
        answer = ResponseAnswer(
            id=chat.id,
            created=int(time.time()),
            model=chat.model,
            request=body,
            with_tokens=options.token_ids and bool(body.get(ASKED)),
            context_left=options.max_model_len - len(generation.prompt_ids),
        )
        if body.get("stream"):
            chunks = chat.chat_chunks(read, generation)
            usage = chat.chat(read, generation)["usage"]
            pieces = map(_encoded, answer.pieces(generation, chunks, usage))
            return await self.stream_bytes(request, record, generation, pieces, tail=b"")
        await self._take_time(generation)
        self._count(generation)
        return json_response(answer.whole(generation, chat.chat(read, generation)))

    def _read(self, record: RequestRecord, body: JsonObject) -> ChatRequest:
        """Translate the request to one of Chat Completions. Raises Refused."""
        if (earlier := body.get("previous_response_id")) is not None:
            kind = "invalid_request_error"
            raise Refused(404, f"Response with id '{earlier}' not found.", kind=kind, param="response_id")
        include = body.get("include") or []
        if unknown := [name for name in include if name not in _INCLUDABLE]:
            raise _invalid("include.0", f"Input should be one of {sorted(_INCLUDABLE)}, got {unknown[0]!r}")
        limit = body.get("max_output_tokens")
        if isinstance(limit, int) and limit > self.options.max_model_len:
            raise Refused(
                400,
                f"max_output_tokens={limit} cannot be greater than max_model_len={self.options.max_model_len}. "
                f"Please request fewer output tokens. (parameter=max_output_tokens, value={limit})",
                param="max_output_tokens",
            )
        chat: JsonObject = {name: body[name] for name in _SHARED if body.get(name) is not None}
        chat |= {"messages": _messages(body), "max_tokens": limit, **_tools(body)}
        form = (body.get("text") or {}).get("format")
        if form is not None and (shape := response_format(form, "text.format")) is not None:
            chat["response_format"] = shape
        if LOGPROBS in include:
            chat |= {"logprobs": True, "top_logprobs": body.get("top_logprobs") or 0}
        read = read_chat_request(chat)
        describe(record, {**chat, "stream": body.get("stream")})
        return replace(read, stream=bool(body.get("stream")), include_usage=False)


def _messages(body: JsonObject) -> list[JsonObject]:
    items = body.get("input")
    if not isinstance(items, str | list):
        raise _invalid("input", "Input should be a valid string or list")
    try:
        messages = to_chat_messages(items)
    except WireError as error:
        raise _invalid(error.field, error.message) from None
    if body.get("instructions") is not None:
        messages.insert(0, {"role": "system", "content": body["instructions"]})
    return messages


def _tools(body: JsonObject) -> JsonObject:
    given = [tool for tool in body.get("tools") or () if tool.get("type") == "function"]
    choice = body.get("tool_choice") or "auto"
    if not given:
        if choice not in ("auto", "none"):
            message = f"Tool choice {choice!r} must be specified with 'tools' parameter."
            raise Refused(400, f"{message} (parameter=tool_choice)", param="tool_choice")
        return {}
    nested = [
        {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}
        for tool in given
    ]
    if isinstance(choice, dict):
        choice = {"type": "function", "function": {"name": choice.get("name")}}
    return {"tools": nested, "tool_choice": choice}


def _invalid(place: str, message: str) -> Refused:
    return Refused(400, f"1 validation error:\n  {{'loc': 'body.{place}', 'msg': {message!r}}}", kind="Bad Request")


def _encoded(events: list[JsonObject]) -> bytes:
    return b"".join(sse.event(event["type"], event) for event in events)
