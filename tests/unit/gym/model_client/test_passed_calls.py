"""Calls in the Responses API itself: settings of the policy, token ids, faults."""

from __future__ import annotations

from typing import Any

import pytest

from gym.errors import BadRow, ModelRejected, ModelUnreachable
from gym.model_client.sampling import pinned_response
from gym.model_client.tokens.response_tokens import read_response_tokens, with_asks
from gym.policy import PolicySpec
from gym.wire.passthrough.reply import shown_event

pytestmark = pytest.mark.anyio

LOGPROBS = "message.output_text.logprobs"


def text_part(*logprobs: float) -> dict[str, Any]:
    entries = [{"token": "t", "logprob": value, "bytes": [116], "top_logprobs": []} for value in logprobs]
    return {"type": "output_text", "text": "tt", "annotations": [], "logprobs": entries}


def response(*parts: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A response of one message, as vLLM gives it to the farm."""
    message = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": list(parts)}
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "status": "completed",
        "model": "m",
        "output": [message],
        "usage": {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5},
        "input_messages": [{"message": "", "tokens": [1, 2, 3], "type": "raw_message_tokens"}],
        "output_messages": [{"message": "tt", "tokens": [4, 5], "type": "raw_message_tokens"}],
        **fields,
    }


WHOLE = response(text_part(-1.0, -2.0))


async def test_a_call_goes_as_it_came_but_for_what_is_the_policys(server, client, policies, ask):
    server.default = WHOLE
    overrides = {"temperature": 1.0, "max_tokens": 5, "reasoning_effort": "low", "top_k": None}
    policy = policies.put("p", [server.url], model="served", api="responses", sampling_overrides=overrides)
    item = {"type": "custom_tool_call_output", "call_id": "c", "output": "x", "unknown": 1}
    params = {
        "model": "any",
        "input": [{"role": "user", "content": "hi"}, item],
        "max_output_tokens": 99,
        "temperature": 0.0,
        "top_k": 7,
        "reasoning": {"effort": "high", "summary": "auto"},
        "include": ["reasoning.encrypted_content"],
        "a_newer_parameter": {"x": [1]},
    }
    reply = await client.respond(ask(policy, params=params))
    [body] = server.bodies
    assert server.requests[0].path == "/v1/responses"
    assert body == {
        "model": "served",
        "input": params["input"],
        "max_output_tokens": 5,
        "temperature": 1.0,
        "reasoning": {"effort": "low", "summary": "auto"},
        "include": ["reasoning.encrypted_content", LOGPROBS],
        "a_newer_parameter": {"x": [1]},
        "enable_response_messages": True,
        "store": False,
        "stream": False,
    }
    assert reply.items == [{**WHOLE["output"][0], "content": [{**text_part(), "logprobs": []}]}]
    assert (list(reply.tokens.prompt_ids), list(reply.tokens.token_ids)) == ([1, 2, 3], [4, 5])
    assert list(reply.tokens.logprobs) == [-1.0, -2.0]
    assert (reply.facts.usage.input_tokens, reply.facts.usage.output_tokens) == (3, 2)


def test_no_stream_options_without_a_stream_and_none_of_them_lost_with_one():
    spec = PolicySpec(base_urls=["http://h"], model="m", api="responses")
    body = {"input": "x", "stream_options": {"include_obfuscation": False}}
    assert "stream_options" not in pinned_response(body, spec, stream=False)
    assert pinned_response(body, spec, stream=True)["stream_options"] == {"include_obfuscation": False}


def test_what_the_caller_asks_for_is_not_asked_for_twice():
    assert with_asks({"include": [LOGPROBS]}, "unknown")["include"] == [LOGPROBS]
    assert with_asks({"input": "x"}, "none") == {"input": "x"}


@pytest.mark.parametrize(
    "broken",
    [
        response(text_part(-1.0)),
        response(text_part()),
        response(text_part(-1.0, -2.0), text_part(-1.0, -2.0)),
        response(text_part(-1.0, -2.0), usage={"output_tokens": 3}),
        response(text_part(-1.0, -2.0), output_messages=None),
        response(text_part(-1.0, -2.0), output_messages=[{"tokens": [4]}, {"tokens": [5]}]),
        response(text_part(-1.0, -2.0), input_messages=[{"role": "user", "content": "harmony"}]),
        response(text_part(-1.0, -2.0), input_messages=[{"tokens": ["1"]}]),
    ],
)
def test_tokens_that_do_not_fit_together_are_none(broken):
    assert read_response_tokens(WHOLE) is not None
    assert read_response_tokens(broken) is None


@pytest.mark.parametrize(
    "refusal",
    [
        {"message": "Unknown parameter: 'enable_response_messages'.", "param": "enable_response_messages"},
        {"message": "logprobs are not supported with gpt-oss models", "param": "logprobs"},
        {"message": "logprobs are not supported with reasoning models", "param": "include[0]"},
    ],
)
async def test_a_server_that_refuses_to_name_tokens_is_asked_no_more(
    server, client, policies, ask, shapes, caplog, refusal
):
    plain = {name: value for name, value in WHOLE.items() if not name.endswith("_messages")}
    server.script = [shapes.error(400, **refusal)]
    server.default = plain
    policy = policies.put("p", [server.url], api="responses")
    first = await client.respond(ask(policy))
    await client.respond(ask(policy, turn=1))
    assert ["enable_response_messages" in body for body in server.bodies] == [True, False, False]
    assert not any("include" in body for body in server.bodies[1:])
    assert first.tokens is None


async def test_the_callers_own_wish_that_is_refused_is_the_callers_fault(server, client, policies, ask, shapes):
    told = "logprobs are not supported with gpt-oss models"
    server.default = lambda request: shapes.error(400, told, param="logprobs")
    policy = policies.put("p", [server.url], api="responses")
    with pytest.raises(ModelRejected, match="gpt-oss"):
        await client.respond(ask(policy, params={"input": "x", "include": [LOGPROBS]}))
    assert len(server.bodies) == 2


async def test_a_policy_without_token_ids_is_asked_for_none(server, client, policies, ask):
    server.default = WHOLE
    reply = await client.respond(ask(policies.put("p", [server.url], api="responses", token_ids=False)))
    assert "enable_response_messages" not in server.bodies[0]
    assert reply.tokens is None


async def test_a_server_that_ignores_the_question_is_noted(server, client, policies, ask, caplog):
    server.default = {name: value for name, value in WHOLE.items() if not name.endswith("_messages")}
    policy = policies.put("p", [server.url], api="responses")
    await client.respond(ask(policy))
    assert "gives no token ids" in caplog.text
    await client.respond(ask(policy, turn=1))
    assert "enable_response_messages" not in server.bodies[1]


async def test_a_failed_response_is_sampled_again(server, client, policies, ask):
    server.script = [{**WHOLE, "status": "failed", "error": {"message": "out of memory"}}]
    server.default = WHOLE
    reply = await client.respond(ask(policies.put("p", [server.url], api="responses")))
    assert (reply.facts.attempts, reply.facts.finish) == (2, "stop")


async def test_an_answer_that_is_no_response_is_the_servers_fault(server, clients, policies, ask, shapes):
    server.default = shapes.completion()
    client = await clients(max_retries=0)
    with pytest.raises(ModelUnreachable, match="no completion"):
        await client.respond(ask(policies.put("p", [server.url], api="responses")))


async def test_a_hosted_tool_in_a_row_is_the_rows_fault(server, client, policies, ask):
    params = {"input": "x", "tools": [{"type": "web_search"}]}
    with pytest.raises(BadRow, match=r"`tools\.0\.type`"):
        await client.respond(ask(policies.put("p", [server.url], api="responses"), params=params))
    assert server.requests == []


@pytest.mark.parametrize("fields", [{"tool_parser": "hermes"}, {"required_prefix": True}])
def test_what_belongs_to_the_other_apis_is_refused(fields):
    with pytest.raises(ValueError, match="api: "):
        PolicySpec(base_urls=["http://h"], model="m", api="responses", **fields)


@pytest.mark.parametrize("limit", [None, 0])
async def test_no_room_left_is_an_overflow_unless_the_caller_leaves_none(server, client, policies, ask, shapes, limit):
    told = "max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)"  # vLLM 0.32's words here too
    server.default = lambda request: shapes.error(400, told, param="max_tokens")
    call = ask(policies.put("p", [server.url], api="responses"), params={"input": "x", "max_output_tokens": limit})
    if limit is None:
        assert (await client.respond(call)).facts.finish == "context_overflow"
    else:
        with pytest.raises(ModelRejected, match="at least 1"):
            await client.respond(call)


def test_events_show_no_log_probabilities_that_nobody_but_the_farm_asked_for():
    part = text_part(-1.0)
    bare = {**part, "logprobs": []}
    delta = {"type": "response.output_text.delta", "delta": "t", "logprobs": part["logprobs"]}
    done = {"type": "response.output_item.done", "item": {"type": "message", "content": [part]}}
    ended = {"type": "response.content_part.done", "part": part}
    assert shown_event({}, delta)["logprobs"] == []
    assert shown_event({}, done)["item"]["content"] == [bare]
    assert shown_event({}, ended)["part"] == bare
    for event in (delta, done, ended):
        assert shown_event({"include": [LOGPROBS]}, event) == event
