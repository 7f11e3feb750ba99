"""Tools and output formats of a Responses request at a real vLLM, there and back through `gym.wire`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gym.wire.responses.reply import to_response
from gym.wire.responses.request import to_chat_request

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather in a city.",
    "parameters": CITY,
    "strict": True,
}
LEVEL = {"type": "object", "properties": {"level": {"type": "integer"}}, "required": ["level"]}
ALARM = {"type": "function", "name": "set_alarm", "description": "Set an alarm.", "parameters": LEVEL, "strict": True}
QUESTION = "Is it warm in Lima right now?"


def respond(vllm: Any, **fields: Any) -> dict[str, Any]:
    """A response to a Responses request."""
    body = {
        "model": "weatherman",
        "input": QUESTION,
        "temperature": 1.0,
        "seed": 1,
        "max_output_tokens": 400,
        **fields,
    }
    completion = vllm.post("/v1/chat/completions", to_chat_request(body))
    return to_response(body, completion, response_id="resp_1", created_at=0.0)


def calls_in(response: dict[str, Any]) -> list[dict[str, Any]]:
    return [item for item in response["output"] if item["type"] == "function_call"]


def texts_in(response: dict[str, Any]) -> list[str]:
    return [part["text"] for item in response["output"] if item["type"] == "message" for part in item["content"]]


def test_left_to_itself_the_model_calls_a_tool(vllm: Any) -> None:
    response = respond(vllm, tools=[WEATHER], tool_choice="auto")
    assert response["status"] == "completed"
    assert {(call["name"], call["arguments"]) for call in calls_in(response)} == {("get_weather", '{"city": "Lima"}')}
    assert len({call["call_id"] for call in calls_in(response)}) == len(calls_in(response))
    assert texts_in(response) == []


def test_tools_that_may_not_be_called_are_not(vllm: Any) -> None:
    response = respond(vllm, tools=[WEATHER], tool_choice="none")
    assert calls_in(response) == []


@pytest.mark.parametrize("tools", [[WEATHER], [ALARM], [WEATHER, ALARM]], ids=["one", "another", "two"])
def test_a_required_call_fits_the_schema_of_its_tool(vllm: Any, tools: list[dict[str, Any]]) -> None:
    for seed in (1, 2, 3):
        response = respond(vllm, tools=tools, tool_choice="required", seed=seed)
        assert calls_in(response)
        for call in calls_in(response):
            assert_fits(call)


@pytest.mark.parametrize("name", ["get_weather", "set_alarm"])
def test_a_named_tool_is_the_one_that_is_called(vllm: Any, name: str) -> None:
    response = respond(vllm, tools=[WEATHER, ALARM], tool_choice={"type": "function", "name": name})
    assert response["status"] == "completed"
    [call] = calls_in(response)
    assert call["name"] == name
    assert_fits(call)


def assert_fits(call: dict[str, Any]) -> None:
    field, kind = {"get_weather": ("city", str), "set_alarm": ("level", int)}[call["name"]]
    arguments = json.loads(call["arguments"])
    assert list(arguments) == [field]
    assert type(arguments[field]) is kind


def test_of_allowed_tools_only_those_are_offered(vllm: Any) -> None:
    choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "set_alarm"}]}
    response = respond(vllm, tools=[WEATHER, ALARM], tool_choice=choice)
    assert {call["name"] for call in calls_in(response)} == {"set_alarm"}


def test_the_model_may_call_several_tools_in_one_turn(vllm: Any) -> None:
    counts = {len(calls_in(respond(vllm, tools=[WEATHER], seed=seed))) for seed in range(12)}
    assert counts > {1}, "with these seeds some turns have one call and some have more"


def test_without_parallel_calls_there_is_one(vllm: Any) -> None:
    for seed in range(12):
        response = respond(vllm, tools=[WEATHER], seed=seed, parallel_tool_calls=False)
        assert len(calls_in(response)) == 1


def test_several_calls_and_their_outputs_go_back_to_the_model(vllm: Any) -> None:
    asked = next(r for r in (respond(vllm, tools=[WEATHER], seed=s) for s in range(12)) if len(calls_in(r)) > 1)
    outputs = [
        {"type": "function_call_output", "call_id": call["call_id"], "output": "cold"} for call in calls_in(asked)
    ]
    told = respond(vllm, input=[{"role": "user", "content": QUESTION}, *asked["output"], *outputs], tools=[WEATHER])
    assert texts_in(told) == ["The weather in Lima is cold"]


def test_a_json_schema_shapes_the_answer(vllm: Any) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string"}, "warm": {"type": "boolean"}, "degrees": {"type": "integer"}},
        "required": ["city", "warm", "degrees"],
        "additionalProperties": False,
    }
    text = {"format": {"type": "json_schema", "name": "weather", "schema": schema, "strict": True}}
    for seed in (1, 2, 3):
        response = respond(vllm, text=text, seed=seed)
        assert response["status"] == "completed"
        answer = json.loads("".join(texts_in(response)))
        assert {name: type(value) for name, value in answer.items()} == {"city": str, "warm": bool, "degrees": int}


def test_a_json_object_is_an_object(vllm: Any) -> None:
    for seed in range(8):
        response = respond(vllm, text={"format": {"type": "json_object"}}, seed=seed)
        if response["status"] == "completed":  # nothing makes a random model close its braces
            assert isinstance(json.loads("".join(texts_in(response))), dict)
            return
    pytest.fail("no seed ended its object")


def test_log_probabilities_of_the_text_are_those_of_its_tokens(vllm: Any) -> None:
    response = respond(vllm, include=["message.output_text.logprobs"])
    [message] = response["output"]
    [part] = message["content"]
    assert "".join(entry["token"] for entry in part["logprobs"]) == part["text"]
    assert all(entry["logprob"] <= 0 for entry in part["logprobs"])
