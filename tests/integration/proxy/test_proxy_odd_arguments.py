"""Tool arguments that few JSON writers take, through a real proxy: kept as written in every dialect, never a 500."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from gym.plain import exact_json
from gym.wire.history import INVALID_JSON, MOST_DEPTH, input_of

pytestmark = pytest.mark.anyio

LONG = 123456789012345678901234567890
DEEP = '{"a": ' * 3000 + "1" + "}" * 3000
KEPT: dict[str, str] = {
    "30 digits": f'{{"account": {LONG}}}',
    "30 digits below 0": f'{{"account": -{LONG}}}',
    "400 digits": f'{{"account": {"7" * 400}}}',
    "199 levels": '{"a": ' * 199 + "1" + "}" * 199,
    "a pair of surrogates": '{"q": "\\ud83c\\udf0d"}',
}
WRAPPED: dict[str, str] = {
    "half a pair of surrogates": '{"q": "\\ud83c"}',
    "half a pair beside 30 digits": f'{{"q": "\\ud83c", "account": {LONG}}}',
    "NaN": '{"x": NaN}',
    "Infinity": '{"x": -Infinity}',
    "a float that overflows": '{"x": 1e999}',
    "a float that overflows beside 30 digits": f'{{"x": 1e999, "account": {LONG}}}',
    "5000 digits": f'{{"account": {"7" * 5000}}}',
    "250 levels": '{"a": ' * 250 + "1" + "}" * 250,
    "900 levels": '{"a": ' * 900 + "1" + "}" * 900,
    "3000 levels": DEEP,
}
VALUES = KEPT | WRAPPED
CHAT, RESPONSES, MESSAGES, GEMINI = "/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1beta/models/any"
DIALECTS = (CHAT, RESPONSES, MESSAGES, GEMINI)
SCHEMA: dict[str, Any] = {"type": "object", "properties": {"account": {"type": "integer", "maximum": LONG}}}


@asynccontextmanager
async def calling(arguments: str) -> AsyncIterator[tuple[str, list[dict[str, Any]]]]:
    """A model server that calls a tool with these arguments in the first turn; its address, and what it was asked."""
    asked: list[dict[str, Any]] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(exact_json.loads(await request.read()))
        message: dict[str, Any] = {"role": "assistant", "content": "Done."}
        if asked[-1]["messages"][-1]["role"] == "user":
            function = {"name": "look_up", "arguments": arguments}
            message |= {"content": None, "tool_calls": [{"id": "call_1", "type": "function", "function": function}]}
        finish = "tool_calls" if "tool_calls" in message else "stop"
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        choices = [{"index": 0, "message": message, "finish_reason": finish}]
        made = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": choices, "usage": usage}
        if not asked[-1].get("stream"):
            return web.Response(body=orjson.dumps(made), content_type="application/json")
        for number, call in enumerate(message.get("tool_calls", ())):
            call["index"] = number
        made["choices"] = [{"index": 0, "delta": message, "finish_reason": finish}]
        return web.Response(body=b"data: %b\n\ndata: [DONE]\n\n" % orjson.dumps(made), content_type="text/event-stream")

    app = web.Application()
    app.router.add_post(CHAT, answer)
    async with TestServer(app) as server:
        yield str(server.make_url("")), asked


def asking(path: str, said: dict[str, Any] | None) -> dict[str, Any]:
    """A request with a tool; with `said`, an answer of the same dialect, also that answer and the tool's result."""
    function = {"name": "look_up", "parameters": SCHEMA}
    if path == CHAT:
        messages: list[Any] = [{"role": "user", "content": "hi"}]
        if said is not None:
            messages += [said["choices"][0]["message"], {"role": "tool", "tool_call_id": "call_1", "content": "r"}]
        return {"model": "any", "messages": messages, "tools": [{"type": "function", "function": function}]}
    if path == RESPONSES:
        items: list[Any] = [{"role": "user", "content": "hi"}]
        if said is not None:
            items += [*said["output"], {"type": "function_call_output", "call_id": "call_1", "output": "r"}]
        return {"model": "any", "input": items, "tools": [{"type": "function", **function}]}
    if path == MESSAGES:
        turns: list[Any] = [{"role": "user", "content": "hi"}]
        if said is not None:
            result = {"type": "tool_result", "tool_use_id": said["content"][0]["id"], "content": "r"}
            turns += [{"role": "assistant", "content": said["content"]}, {"role": "user", "content": [result]}]
        tools = [{"name": "look_up", "input_schema": SCHEMA}]
        return {"model": "any", "max_tokens": 9, "messages": turns, "tools": tools}
    contents: list[Any] = [{"role": "user", "parts": [{"text": "hi"}]}]
    if said is not None:
        call = said["candidates"][0]["content"]["parts"][0]["functionCall"]
        result = {"id": call["id"], "name": "look_up", "response": {"output": "r"}}
        contents += [said["candidates"][0]["content"], {"role": "user", "parts": [{"functionResponse": result}]}]
    declared = {"name": "look_up", "parametersJsonSchema": SCHEMA}
    return {"contents": contents, "tools": [{"functionDeclarations": [declared]}]}


def told(path: str, said: dict[str, Any]) -> Any:
    """The arguments of the one call of an answer: a text, or an object in dialects that have objects."""
    if path == CHAT:
        return said["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"]
    if path == RESPONSES:
        return next(item for item in said["output"] if item["type"] == "function_call")["arguments"]
    if path == MESSAGES:
        return next(block for block in said["content"] if block["type"] == "tool_use")["input"]
    return said["candidates"][0]["content"]["parts"][0]["functionCall"]["args"]


def address(path: str, *, stream: bool = False) -> str:
    return path + (":streamGenerateContent" if stream else ":generateContent") if path == GEMINI else path


async def asked_for(http: Any, url: str, body: dict[str, Any]) -> bytes:
    answer = await http.post(url, content=exact_json.dumps(body), headers={"content-type": "application/json"})
    assert answer.status_code == 200, answer.text[:500]
    content: bytes = answer.content
    return content


@pytest.mark.parametrize("path", DIALECTS)
@pytest.mark.parametrize("value", VALUES)
async def test_arguments_reach_the_client_and_come_back_as_the_model_wrote_them(farm, http, value, path):
    arguments = VALUES[value]
    wanted: Any = arguments
    if path in (MESSAGES, GEMINI):
        wanted = json.loads(arguments) if value in KEPT else {INVALID_JSON: arguments}
    async with calling(arguments) as (url, asked):
        await farm.serve(url)
        proxy = await farm.proxy()
        for base in (proxy, f"{proxy}/rollouts/r"):
            asked.clear()
            first = await asked_for(http, base + address(path), asking(path, None))
            said = exact_json.loads(first)
            assert told(path, said) == wanted
            await asked_for(http, base + address(path), asking(path, said))
            (call,) = asked[-1]["messages"][1]["tool_calls"]
            sent = call["function"]["arguments"]
            assert asked[-1]["tools"][0]["function"]["parameters"] == SCHEMA
            if value in KEPT:
                assert json.loads(sent) == json.loads(arguments)
            else:
                assert sent == arguments or json.loads(sent) == {INVALID_JSON: arguments}
        assert await asked_for(http, base + address(path), asking(path, None)) == first
        assert len(asked) == 2
        trajectory = await farm.captures.trajectory("r")
        assert [each.turn for each in trajectory.calls] == [0, 1]
        assert sum(item.get("type") == "function_call" for item in trajectory.items) == 1
        assert trajectory.params["tools"][0]["function"]["parameters"] == SCHEMA


@pytest.mark.parametrize("path", DIALECTS)
async def test_a_stream_gives_them_too(farm, http, path):
    proxy = await farm.proxy()
    body = asking(path, None) | ({} if path == GEMINI else {"stream": True})
    for number, arguments in enumerate(VALUES.values()):
        async with calling(arguments) as (url, asked):
            await farm.serve(url)
            await http.get(f"{proxy}/healthz")
            for base in (proxy, f"{proxy}/rollouts/r{number}"):
                raw = await asked_for(http, base + address(path, stream=True), body)
                expected = input_of(arguments) if path == GEMINI else arguments
                assert streamed(path, raw) == expected
            assert streamed(path, await asked_for(http, base + address(path, stream=True), body)) == expected
            assert len(asked) == 2


def streamed(path: str, raw: bytes) -> Any:
    """The arguments that a stream gives, put together."""
    if path == GEMINI:
        return told(path, exact_json.loads(raw)[-1])
    events = [exact_json.loads(line[6:]) for line in raw.splitlines() if line.startswith(b"data: {")]
    if path == MESSAGES:
        return "".join(each["delta"].get("partial_json", "") for each in events if "delta" in each)
    if path == RESPONSES:
        deltas = [each["delta"] for each in events if each["type"] == "response.function_call_arguments.delta"]
        return "".join(deltas)
    calls = [each["choices"][0]["delta"].get("tool_calls") or [] for each in events if each["choices"]]
    return "".join(call["function"].get("arguments") or "" for pieces in calls for call in pieces)


@pytest.mark.parametrize("path", DIALECTS)
@pytest.mark.parametrize("levels", [MOST_DEPTH, 245, 600, 1000, 5000])
async def test_a_deep_request_is_taken_or_refused_by_name(farm, http, path, levels):
    async with calling("{}") as (url, _):
        await farm.serve(url)
        proxy = await farm.proxy()
        inner = b'{"a":' * levels + b"1" + b"}" * levels
        body = exact_json.dumps(asking(path, None)).replace(b'"type":"integer"', b'"type":"integer","default":' + inner)
        for rollout in ("", "/rollouts/r"):
            answer = await http.post(f"{proxy}{rollout}{address(path)}", content=body)
            assert answer.status_code == (200 if levels == MOST_DEPTH else 400), answer.text[:300]
            if levels == 245:
                assert "nested deeper than" in answer.text


@pytest.mark.parametrize("path", DIALECTS)
@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
async def test_a_request_with_a_number_that_is_none_is_refused(farm, model, http, path, number):
    proxy = await farm.proxy()
    body = exact_json.dumps(asking(path, None)).replace(str(LONG).encode(), number.encode())
    answer = await http.post(f"{proxy}{address(path)}", content=body)
    assert answer.status_code == 400, answer.text[:300]
