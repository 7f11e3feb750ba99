"""Streams of a policy with `api: tokens`: token by token where the text is the answer, else in one piece."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gym.errors import ModelRejected, ModelUnreachable
from gym.model_client.forward import ChatCall
from gym.model_client.http.urls import EndpointUrl
from gym.model_client.routing.served_model import inline_model
from gym.model_client.tokens.token_stream import StreamSink, generate_streamed
from gym.policy import PolicySpec
from gym.testing.model_server.server import ScriptedModelOptions, ScriptedModelServer
from gym.wire.chat.chunks import ChatAccumulator
from gym.wire.chat.stream import CUT
from gym.wire.errors import BadCompletion
from gym.wire.parsers import REASONING_PARSERS, TOOL_PARSERS, is_read_as_it_is, parse_reply

MESSAGES = [{"role": "user", "content": "What is 4 + 3 ="}]
NOTE = {"type": "function", "function": {"name": "note", "parameters": {"type": "object"}}}


class Heard:
    """Chunks that a caller received, in the batches in which they arrived."""

    def __init__(self) -> None:
        self.pieces: list[list[dict[str, Any]]] = []

    async def __call__(self, chunks: list[dict[str, Any]]) -> None:
        self.pieces.append(chunks)

    def whole(self) -> dict[str, Any]:
        accumulator = ChatAccumulator()
        for chunk in (chunk for piece in self.pieces for chunk in piece):
            accumulator.feed(chunk)
        return accumulator.completion()


def call(server: ScriptedModelServer, heard: Heard | None, *, stop: str | None = None, **spec: Any) -> ChatCall:
    body: dict[str, Any] = {"messages": MESSAGES, "stream": True, **({"stop": stop} if stop else {})}
    if spec.pop("tools", False):
        body["tools"] = [NOTE]
    policy = inline_model(PolicySpec(base_urls=[server.url], model="any", api="tokens", **spec))
    deadline = asyncio.get_running_loop().time() + 20
    return ChatCall(policy=policy, body=body, sticky_key="g", deadline=deadline, request_id="r-1-0", on_chunks=heard)


@pytest.mark.anyio
@pytest.mark.parametrize("stop", [None, "</answer>"])
async def test_text_comes_as_it_is_generated_and_is_recorded_as_if_it_came_whole(client, stop):
    heard = Heard()
    async with ScriptedModelServer(ScriptedModelOptions(token_latency_s=0.05, weight_version="7")) as server:
        streamed = await client.complete(call(server, heard, stop=stop))
        assert len(heard.pieces) > 2
        assert server.records[-1].stream
        whole = await client.complete(call(server, None, stop=stop))
        assert not server.records[-1].stream
    text = "<answer>7" if stop else "<answer>7</answer>"
    assert heard.pieces[0][0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    for completion in (heard.whole(), streamed.completion):
        assert completion["choices"][0]["message"]["content"] == text
        assert completion["usage"] == whole.completion["usage"]
    assert streamed.tokens == whole.tokens
    assert streamed.tokens.ended is (stop is None)
    assert (streamed.facts.version_before, streamed.facts.version_after) == (7, 7)
    [of_stream], [of_whole] = streamed.completion["choices"], whole.completion["choices"]
    assert of_stream == {name: value for name, value in of_whole.items() if value is not None}


@pytest.mark.anyio
@pytest.mark.parametrize(
    "spec", [{"reasoning_parser": "qwen3"}, {"tool_parser": "hermes", "tools": True}, {"tool_parser": "qwen3_coder"}]
)
async def test_what_a_parser_has_to_read_comes_in_one_piece(client, spec):
    heard = Heard()
    async with ScriptedModelServer(ScriptedModelOptions()) as server:
        reply = await client.complete(call(server, heard, **spec))
        assert not server.records[-1].stream
    [[message, usage]] = heard.pieces
    assert message["choices"][0]["delta"] == reply.completion["choices"][0]["message"]
    assert usage["usage"] == reply.completion["usage"]


@pytest.mark.anyio
async def test_a_parser_with_nothing_to_read_holds_nothing_up(client):
    heard = Heard()
    async with ScriptedModelServer(ScriptedModelOptions(token_latency_s=0.02)) as server:
        await client.complete(call(server, heard, tool_parser="hermes"))
    assert len(heard.pieces) > 1


@pytest.mark.anyio
async def test_the_text_of_a_server_that_generates_tokens_only_comes_in_one_piece(client):
    heard = Heard()
    async with ScriptedModelServer(ScriptedModelOptions(generates_text=False, token_latency_s=0.02)) as server:
        reply = await client.complete(call(server, heard))
    [piece] = heard.pieces
    assert piece[0]["choices"][0]["delta"]["content"] == "<answer>7</answer>"
    assert reply.completion["choices"][0]["message"]["content"] == "<answer>7</answer>"
    assert len(reply.tokens.token_ids) > 1


@pytest.mark.anyio
async def test_a_refused_stream_is_refused_as_a_whole_answer_would_be(client):
    heard = Heard()
    async with ScriptedModelServer(ScriptedModelOptions(served_model="other")) as server:
        with pytest.raises(ModelRejected, match="does not exist"):
            await client.complete(call(server, heard))
    assert heard.pieces == []


@pytest.mark.anyio
async def test_a_stream_that_breaks_after_its_beginning_is_not_begun_anew(client):
    heard = Heard()
    server = ScriptedModelServer(ScriptedModelOptions(token_latency_s=0.2))
    async with server:
        asking = asyncio.create_task(client.complete(call(server, heard)))
        async with asyncio.timeout(20):
            while not heard.pieces:  # noqa: ASYNC110  what is waited for has no event
                await asyncio.sleep(0.01)
    with pytest.raises(ModelUnreachable, match="a part of the answer had been passed on"):
        await asking
    assert server.stats["requests"] == 2  # one rendering, one generation


CHUNK: dict[str, Any] = {"index": 0, "text": "a", "token_ids": [5], "finish_reason": None}


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("events", "problem"),
    [
        ([], CUT),
        ([{"choices": [CHUNK]}], CUT),
        ([{"choices": [CHUNK]}, {"error": {"message": "engine died"}}], "engine died"),
        ([{"choices": [CHUNK, CHUNK]}], "more than one choice"),
        ([{"choices": "no"}], "choices"),
    ],
)
async def test_a_stream_that_makes_no_sense_is_a_broken_answer(events, problem):
    async def send(url: Any, body: dict[str, Any], on_events: Any) -> tuple[int, None, bytes]:
        assert body["stream"] is True
        for event in events:
            await on_events([event])
        return 200, None, b""

    url = EndpointUrl.parse("http://h:1").generate
    with pytest.raises(BadCompletion, match=problem):
        await generate_streamed(StreamSink(send, Heard()), url, {"token_ids": [1]}, {"id": "c"})


@given(
    st.lists(
        st.sampled_from(
            ["a", "\n", " ", "<think>", "</think>", "<tool_call>", "</tool_call>", '{"name": "note"}', "[note()]"]
        )
    ).map("".join),
    st.none() | st.sampled_from(sorted(TOOL_PARSERS)),
    st.none() | st.sampled_from(sorted(REASONING_PARSERS)),
    st.booleans(),
    st.booleans(),
)
def test_what_is_shown_as_it_comes_is_what_a_parser_makes_of_it(text, tool_parser, reasoning_parser, offered, thinking):
    tools = [NOTE] if offered else []
    parsers = {"tool_parser": tool_parser, "reasoning_parser": reasoning_parser, "tools": tools, "thinking": thinking}
    if is_read_as_it_is(**parsers):
        assert parse_reply(text, id_prefix="r", **parsers) == {"role": "assistant", "content": text}
