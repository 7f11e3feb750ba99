"""What a real vLLM streams, put together by `gym.wire`, is what it answers without streaming."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from gym.model_client.tokens.capture import read_generated
from gym.wire.chat.chunks import ChatAccumulator
from gym.wire.messages import reply as messages_reply
from gym.wire.messages import request as messages_request
from gym.wire.messages.stream import MessagesStream
from gym.wire.responses import reply as responses_reply
from gym.wire.responses import request as responses_request
from gym.wire.responses.stream import ResponsesStream
from gym.wire.sse import SseDecoder

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

ASKS = {"logprobs": True, "return_token_ids": True, "temperature": 1.0, "max_tokens": 200}
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the weather in a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
OFFERED = [{"type": "function", "function": {name: WEATHER[name] for name in WEATHER if name != "type"}}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
BODIES = {
    "text": {},
    "cut": {"max_tokens": 3},
    "tools, auto": {"tools": OFFERED},
    "tools, required": {"tools": OFFERED, "tool_choice": "required"},
    "tools, named": {"tools": OFFERED, "tool_choice": {"type": "function", "function": {"name": "get_weather"}}},
    "schema": {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}},
}


def chat(seed: int, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Is it warm in Lima?"}], **ASKS, "seed": seed, **fields}


def streamed(vllm: Any, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The chunks of the same call, streamed."""
    decoder = SseDecoder()
    events: list[bytes] = []
    asked = {"model": "weatherman", **body, "stream": True, "stream_options": {"include_usage": True}}
    with vllm.http.stream("POST", "/v1/chat/completions", json=asked) as answer:
        assert answer.status_code == 200
        for received in answer.iter_bytes():
            events += decoder.feed(received)
    assert events[-1] == b"[DONE]"
    return [orjson.loads(event) for event in events[:-1]]


def together(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    accumulator = ChatAccumulator()
    for chunk in chunks:
        accumulator.feed(chunk)
    assert accumulator.finished
    return accumulator.completion()


def said(completion: dict[str, Any]) -> dict[str, Any]:
    """The message without nulls, empty texts and the ids that the server makes up for calls."""
    [choice] = completion["choices"]
    message = {name: value for name, value in choice["message"].items() if value not in (None, "", [])}
    message["tool_calls"] = [call["function"] for call in message.get("tool_calls", [])]
    return {**message, "finish_reason": choice["finish_reason"]}


@pytest.mark.parametrize("fields", BODIES.values(), ids=BODIES.keys())
def test_a_stream_put_together_is_the_answer_without_streaming(vllm: Any, fields: dict[str, Any]) -> None:
    for seed in (1, 2, 3):
        body = chat(seed, **fields)
        whole = vllm.post("/v1/chat/completions", body)
        chunks = streamed(vllm, body)
        rebuilt = together(chunks)
        assert said(rebuilt) == said(whole)
        (expected, level), (found, streamed_level) = read_generated(whole), read_generated(rebuilt)
        assert level == streamed_level == "native"
        assert expected is not None
        assert found is not None
        assert (found.prompt_ids, found.token_ids) == (expected.prompt_ids, expected.token_ids)
        assert list(found.logprobs) == pytest.approx(list(expected.logprobs), abs=0.02)
        for count in ("prompt_tokens", "completion_tokens"):
            assert rebuilt["usage"][count] == whole["usage"][count]


def test_tokens_come_as_they_are_generated(vllm: Any) -> None:
    chunks = streamed(vllm, chat(1, max_tokens=40, ignore_eos=True))
    sizes = [len(choice["token_ids"]) for chunk in chunks for choice in chunk["choices"] if "token_ids" in choice]
    assert sum(sizes) == 40
    assert len(sizes) > 10


@pytest.mark.parametrize("tools", [[], [WEATHER]], ids=["text", "tools"])
def test_the_events_of_a_responses_stream_end_in_the_response_without_streaming(vllm: Any, tools: list[Any]) -> None:
    body = {
        "model": "weatherman",
        "input": "Is it warm in Lima?",
        "seed": 3,
        "temperature": 1.0,
        "max_output_tokens": 200,
        "tools": tools,
    }
    request = responses_request.to_chat_request(body)
    stream = ResponsesStream(body, response_id="resp_1", created_at=0.0)
    events = stream.start()
    for chunk in streamed(vllm, request):
        events += stream.feed(chunk)
    events += stream.finish()
    completion = vllm.post("/v1/chat/completions", request)
    whole = responses_reply.to_response(body, completion, response_id="resp_1", created_at=0.0)
    name, last = events[-1]
    assert name == f"response.{whole['status']}"
    assert without_call_ids(last["response"]) == without_call_ids(whole)
    assert [event["sequence_number"] for _, event in events] == list(range(len(events)))


def without_call_ids(response: dict[str, Any]) -> dict[str, Any]:
    """What two answers to the same question share: no ids of calls, no count of what was cached."""
    output = [{name: value for name, value in item.items() if name != "call_id"} for item in response["output"]]
    usage = {name: response["usage"][name] for name in ("input_tokens", "output_tokens")}
    return {**response, "output": output, "usage": usage}


def test_an_anthropic_stream_carries_the_message_without_streaming(vllm: Any) -> None:
    tool = {"name": "get_weather", "description": WEATHER["description"], "input_schema": WEATHER["parameters"]}
    body = {
        "model": "weatherman",
        "max_tokens": 200,
        "temperature": 1.0,
        "extra_body": {"seed": 3},
        "messages": [{"role": "user", "content": "Is it warm in Lima?"}],
        "tools": [tool],
    }
    request = messages_request.to_chat_request(body)
    stream = MessagesStream(body, message_id="msg_1")
    events = stream.start()
    for chunk in streamed(vllm, request):
        events += stream.feed(chunk)
    events += stream.finish()
    whole = messages_reply.to_message(body, vllm.post("/v1/chat/completions", request), message_id="msg_1")
    deltas = [event["delta"] for name, event in events if name == "content_block_delta"]
    text = "".join(delta["partial_json"] for delta in deltas if delta["type"] == "input_json_delta")
    calls = [block["input"] for block in whole["content"] if block["type"] == "tool_use"]
    assert calls
    assert text == "".join(orjson.dumps(call).decode().replace(":", ": ") for call in calls)
    [stopped] = [event for name, event in events if name == "message_delta"]
    assert stopped["delta"]["stop_reason"] == whole["stop_reason"] == "tool_use"
