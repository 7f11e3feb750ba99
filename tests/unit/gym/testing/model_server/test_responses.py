"""The scripted server's `/v1/responses`: vLLM's shapes and its gaps; tests/vllm compares it with a real one."""

from typing import Any

import aiohttp
import orjson
import pytest

from gym.testing.scripted_policy.tokenizer import decode
from gym.wire.sse import SseDecoder

pytestmark = pytest.mark.anyio

TOOL = {"type": "function", "name": "get_weather", "parameters": {"type": "object", "properties": {}}}
ALL = {"include": ["message.output_text.logprobs"], "enable_response_messages": True}
SPOKEN = 'Go. [[reason One.]] [[say I look.]] [[call get_weather {"city": "Lima"}]]'


async def post(http: aiohttp.ClientSession, status: int = 200, **body: Any) -> Any:
    async with http.post("/v1/responses", json={"model": "m", **body}) as response:
        assert response.status == status, await response.text()
        return await response.json()


async def events(http: aiohttp.ClientSession, **body: Any) -> list[dict[str, Any]]:
    async with http.post("/v1/responses", json={"model": "m", "stream": True, **body}) as response:
        received = await response.read()
    assert b"[DONE]" not in received
    return [orjson.loads(event) for event in SseDecoder().feed(received)]


def without_ids(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Drop the fields in which a whole and a streamed response differ: ids, reasoning status, log-probabilities."""
    shared = [
        {name: value for name, value in item.items() if name not in ("id", "status", "call_id")} for item in items
    ]
    return orjson.loads(orjson.dumps(shared).replace(b'"logprobs":[]', b'"logprobs":null'))


async def test_tokens_and_their_log_probabilities_come_where_there_is_a_text(http):
    answer = await post(http, input=SPOKEN, tools=[TOOL], **ALL)
    assert [item["type"] for item in answer["output"]] == ["reasoning", "message", "function_call"]
    [said] = answer["output_messages"]
    assert decode(said["tokens"]).startswith("<think>One.</think>I look.<tool_call>")
    assert len(answer["output"][1]["content"][0]["logprobs"]) == len(said["tokens"]) == answer["usage"]["output_tokens"]
    assert decode(answer["input_messages"][0]["tokens"]).count(SPOKEN) == 1


async def test_who_does_not_ask_is_given_neither(http):
    answer = await post(http, input="What is 4 + 3 =")
    assert (answer["input_messages"], answer["output_messages"]) == (None, None)
    assert answer["output"][0]["content"][0]["logprobs"] is None


async def test_a_stream_ends_in_the_answer_and_lacks_what_shows_no_text(http):
    whole = await post(http, input=SPOKEN, tools=[TOOL], **ALL)
    streamed = await events(http, input=SPOKEN, tools=[TOOL], **ALL)
    assert [event["sequence_number"] for event in streamed] == list(range(len(streamed)))
    last = streamed[-1]
    assert last["type"] == "response.completed"
    assert last["response"]["output_messages"] == whole["output_messages"]
    part = last["response"]["output"][1]["content"][0]
    assert 0 < len(part.pop("logprobs")) < whole["usage"]["output_tokens"]
    whole["output"][1]["content"][0].pop("logprobs")
    assert without_ids(last["response"]["output"]) == without_ids(whole["output"])
    pieces = "".join(event["delta"] for event in streamed if event["type"] == "response.output_text.delta")
    assert pieces == "I look."


async def test_a_limit_makes_it_incomplete_and_the_stream_is_completed_all_the_same(http):
    whole = await post(http, input="What is 4 + 3 =", max_output_tokens=1)
    assert (whole["status"], whole["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    last = (await events(http, input="What is 4 + 3 =", max_output_tokens=1))[-1]
    assert (last["type"], last["response"]["status"]) == ("response.completed", "incomplete")


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        ({"input": "x", "previous_response_id": "resp_1"}, 404, "Response with id 'resp_1' not found."),
        ({"input": "x", "max_output_tokens": 10**6}, 400, "max_output_tokens=1000000 cannot be greater than"),
        ({"input": "x", "include": ["all"]}, 400, "include"),
        ({"input": "x", "tool_choice": "required"}, 400, "must be specified with 'tools' parameter"),
        ({"input": [{"type": "foo"}]}, 400, "input.0"),
        ({"input": 3}, 400, "input"),
    ],
)
async def test_it_refuses_what_the_real_one_refuses(http, body, status, told):
    assert told in (await post(http, status, **body))["error"]["message"]
