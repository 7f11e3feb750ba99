"""The whole call: translation, pinned sampling, tokens, versions, pause."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest

from gym.errors import BadRow, ModelUnreachable, Stage
from gym.model_client.client import PolicyClient
from gym.model_client.routing.served_model import inline_model
from gym.model_client.settings import ModelSettings
from gym.policy import PolicySpec
from gym.testing.model_server.server import ScriptedModelOptions, ScriptedModelServer
from gym.trajectory import Segments

pytestmark = pytest.mark.anyio


async def test_a_call_is_translated_and_its_answer_too(server, client, policies, ask, shapes):
    tool_calls = [{"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}}]
    message = {"role": "assistant", "content": None, "reasoning": "hm", "tool_calls": tool_calls}
    server.script = [shapes.completion(choice={"message": message, "finish_reason": "tool_calls"})]
    params = {
        "input": [{"role": "user", "content": "add"}],
        "tools": [{"type": "function", "name": "add", "parameters": {"type": "object"}}],
        "max_output_tokens": 9,
    }
    reply = await client.respond(ask(policies.put("p", [server.url], model="served"), params=params))
    assert [item["type"] for item in reply.items] == ["reasoning", "function_call"]
    assert reply.items[1]["call_id"] == "call_1"
    assert (reply.facts.finish, reply.facts.usage.input_tokens, reply.facts.usage.output_tokens) == ("stop", 3, 2)
    body = server.bodies[0]
    assert (body["model"], body["max_tokens"], body["tools"][0]["function"]["name"]) == ("served", 9, "add")
    assert "stream" not in body


async def test_a_request_that_cannot_be_translated_is_the_rows_fault(server, client, policies, ask):
    with pytest.raises(BadRow, match="`previous_response_id`") as caught:
        await client.respond(ask(policies.put("p", [server.url]), params={"input": "x", "previous_response_id": "r"}))
    assert caught.value.stage is Stage.MODEL
    assert server.requests == []


async def test_sampling_overrides_win_over_what_is_asked(server, client, policies, ask):
    policy = policies.put("p", [server.url], sampling_overrides={"temperature": 1.0, "max_output_tokens": 5})
    await client.respond(ask(policy, params={"input": "x", "temperature": 0.0, "max_output_tokens": 99}))
    assert (server.bodies[0]["temperature"], server.bodies[0]["max_tokens"]) == (1.0, 5)


async def test_an_answer_cut_at_its_limit_says_so(server, client, policies, ask, shapes):
    server.script = [shapes.completion(choice={"finish_reason": "length"})]
    reply = await client.respond(ask(policies.put("p", [server.url])))
    assert (reply.facts.finish, reply.items[-1]["status"]) == ("max_tokens", "incomplete")


async def test_token_ids_come_from_the_server_that_names_them(client, ask):
    async with ScriptedModelServer() as server:
        policy = inline_model(PolicySpec(base_urls=[server.url], model="any"))
        segments = Segments()
        for turn in range(2):
            reply = await client.respond(ask(policy, turn=turn))
            assert reply.tokens is not None
            assert len(reply.tokens.prompt_ids) == reply.facts.usage.input_tokens
            assert len(reply.tokens.token_ids) == reply.facts.usage.output_tokens
            segments.add_turn(reply.tokens, reply.facts.version_after)
        assert client.load()[policy.name]["endpoints"][0]["token_ids"] == "native"


async def test_a_server_that_names_ids_in_its_texts_only_is_asked_for_the_prompt(client, ask):
    async with ScriptedModelServer() as server, ScriptedModelServer(ScriptedModelOptions(token_ids=False)) as older:
        replies = [
            await client.respond(ask(inline_model(PolicySpec(base_urls=[url], model="any"))))
            for url in (server.url, older.url)
        ]
    newer_tokens, older_tokens = (reply.tokens for reply in replies)
    assert newer_tokens is not None
    assert older_tokens is not None
    assert (newer_tokens.source, older_tokens.source) == ("server", "tokenize")
    assert older_tokens.prompt_ids == newer_tokens.prompt_ids
    assert older_tokens.token_ids == newer_tokens.token_ids


async def test_a_server_without_tokenize_gives_none_and_is_asked_once(server, client, policies, ask, shapes):
    logprobs = {"content": [{"token": "token_id:7", "logprob": -0.1}]}
    server.script = [shapes.completion(choice={"logprobs": logprobs}) for _ in range(2)]
    policy = policies.put("p", [server.url])
    for _ in range(2):
        assert (await client.respond(ask(policy))).tokens is None
    assert len(server.tokenized) == 1


async def test_a_prompt_of_another_length_than_was_sampled_from_is_not_used(server, client, policies, ask, shapes):
    logprobs = {"content": [{"token": "token_id:7", "logprob": -0.1}]}
    server.script = [shapes.completion(choice={"logprobs": logprobs}) for _ in range(2)]
    policy = policies.put("p", [server.url])
    server.tokens = [1, 2]
    assert (await client.respond(ask(policy))).tokens is None
    server.tokens = [1, 2, 3]
    assert (await client.respond(ask(policy))).tokens is not None


async def test_a_server_that_gives_no_ids_is_asked_once_and_it_is_said(server, client, policies, ask, caplog):
    policy = policies.put("p", [server.url])
    with caplog.at_level(logging.WARNING, "gym.model_client"):
        for _ in range(3):
            assert (await client.respond(ask(policy))).tokens is None
    assert ["return_token_ids" in body for body in server.bodies] == [True, False, False]
    assert [record.action for record in caplog.records] == ["no_token_ids"]


async def test_a_server_that_refuses_the_question_is_called_without_it(server, clients, policies, ask, shapes):
    client = await clients(max_retries=0)
    server.script = [shapes.error(400, "Unrecognized request argument supplied: return_token_ids")]
    reply = await client.respond(ask(policies.put("p", [server.url])))
    assert reply.tokens is None
    assert "return_token_ids" not in server.bodies[1]


async def test_a_policy_announced_anew_is_asked_for_token_ids_again(server, client, policies, ask):
    for _ in range(2):
        await client.respond(ask(policies.put("p", [server.url])))
    assert "return_token_ids" in server.bodies[1]


async def test_token_ids_are_not_asked_for_where_the_policy_wants_none(server, client, policies, ask):
    await client.respond(ask(policies.put("p", [server.url], token_ids=False)))
    assert not {"logprobs", "return_token_ids"} & server.bodies[0].keys()


async def test_a_long_conversation_keeps_its_ids_in_four_bytes_each(server, client, policies, ask, shapes):
    content = [{"token": "x", "logprob": -0.1}]
    server.script = [
        shapes.completion(
            choice={"token_ids": [9], "logprobs": {"content": content}}, prompt_token_ids=list(range(50_000))
        )
    ]
    reply = await client.respond(ask(policies.put("p", [server.url])))
    assert reply.tokens is not None
    assert memoryview(reply.tokens.prompt_ids).nbytes == 200_000


async def test_versions_are_those_announced_before_and_after_the_call(server, client, policies, ask, shapes):
    server.script = [lambda _: policies.change("p", version=8) or shapes.completion()]
    reply = await client.respond(ask(policies.put("p", [server.url], version=7)))
    assert (reply.facts.version_before, reply.facts.version_after) == (7, 8)


async def test_a_version_that_the_server_reports_wins(server, client, policies, ask, shapes):
    server.script = [shapes.completion(weight_version="step-12")]
    reply = await client.respond(ask(policies.put("p", [server.url], version=7)))
    assert (reply.facts.version_before, reply.facts.version_after) == (12, 12)


async def test_an_inline_policy_needs_no_source(server, client, ask):
    policy = inline_model(PolicySpec(base_urls=[server.url], model="m", version=3))
    reply = await client.respond(ask(policy))
    assert (reply.facts.version_before, reply.facts.version_after) == (3, 3)
    assert policy.name in client.load()


async def test_a_deleted_policy_is_called_no_more(server, client, policies, ask):
    policy = policies.put("p", [server.url])
    del policies["p"]
    with pytest.raises(ModelUnreachable, match="PUT /v1/policies/p"):
        await client.respond(ask(policy))
    assert server.requests == []


@pytest.mark.parametrize("mode", ["hold", "drain"])
async def test_a_paused_policy_holds_calls_until_it_is_resumed(server, client, policies, ask, mode):
    policy = policies.put("p", [server.url], version=1, paused=mode)
    held = asyncio.Event()
    calls = [asyncio.create_task(client.respond(ask(policy, turn=turn, on_held=held.set))) for turn in range(3)]
    await held.wait()
    load = client.load()["p"]
    assert (load["held"], load["in_flight"], len(server.requests)) == (3, 0, 0)
    policies.change("p", paused=None, version=2)
    replies = await asyncio.gather(*calls)
    assert [reply.facts.version_before for reply in replies] == [2, 2, 2]
    assert client.load()["p"]["held"] == 0


async def test_a_call_in_flight_when_its_policy_is_paused_ends_as_it_would_have(server, client, policies, ask, shapes):
    server.script = [shapes.HANG]
    call = asyncio.create_task(client.respond(ask(policies.put("p", [server.url]))))
    await server.hanging.wait()
    policies.change("p", paused="drain")
    assert client.load()["p"]["in_flight"] == 1
    server.release.set()
    assert (await call).facts.finish == "stop"
    assert client.load()["p"]["in_flight"] == 0


async def test_a_retry_is_held_too(server, client, policies, ask):
    held = asyncio.Event()
    server.script = [lambda _: policies.change("p", paused="hold") or 429]
    call = asyncio.create_task(client.respond(ask(policies.put("p", [server.url]), on_held=held.set)))
    await held.wait()
    assert client.load()["p"]["held"] == 1
    assert len(server.requests) == 1
    policies.change("p", paused=None)
    assert (await call).facts.attempts == 2


async def test_a_held_call_ends_at_its_deadline(server, client, policies, ask):
    policy = policies.put("p", [server.url], paused="hold")
    with pytest.raises(ModelUnreachable, match=r"paused \(hold\).*POST /v1/policies/p/resume"):
        await client.respond(ask(policy, within_s=0.15))
    assert client.load()["p"]["held"] == 0


async def test_a_held_call_ends_when_its_policy_is_deleted(server, client, policies, ask):
    held = asyncio.Event()
    policy = policies.put("p", [server.url], paused="hold")
    call = asyncio.create_task(client.respond(ask(policy, on_held=held.set)))
    await held.wait()
    del policies["p"]
    with pytest.raises(ModelUnreachable, match="not registered any more"):
        await call


async def test_a_held_call_can_be_cancelled(server, client, policies, ask):
    held = asyncio.Event()
    call = asyncio.create_task(client.respond(ask(policies.put("p", [server.url], paused="hold"), on_held=held.set)))
    await held.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert client.load()["p"]["held"] == 0


async def test_a_scripted_server_with_faults_loses_no_call(client, ask):
    options = ScriptedModelOptions(error_rate=0.2, rate_limit_rate=0.1, retry_after_s=0.0, seed=3)
    async with ScriptedModelServer(options) as server:
        policy = inline_model(PolicySpec(base_urls=[server.url], model="any"))
        replies = await asyncio.gather(*(client.respond(ask(policy, rollout_id=f"b:{n}")) for n in range(60)))
    assert max(reply.facts.attempts for reply in replies) > 1


@pytest.mark.parametrize(("limit", "finish"), [(2, "max_tokens"), (3, "stop"), (None, "stop")])
async def test_a_call_that_used_up_its_limit_was_cut_whatever_the_server_says(
    server, policies, client, ask, shapes, limit, finish
):
    """A real one says `tool_calls` (vLLM 0.32) of an answer whose call it could read, cut or not."""
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1'}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    server.script = [shapes.completion(choice={"message": message, "finish_reason": "tool_calls"})]
    reply = await client.respond(
        ask(policies.put("p", [server.url]), params={"input": "hi", "max_output_tokens": limit})
    )
    assert reply.facts.finish == finish
    assert reply.items[-1]["status"] == ("completed" if finish == "stop" else "incomplete")


async def test_a_context_overflow_of_the_scripted_server_is_recognised(client, ask):
    async with ScriptedModelServer(ScriptedModelOptions(max_model_len=64)) as server:
        policy = inline_model(PolicySpec(base_urls=[server.url], model="any"))
        reply = await client.respond(ask(policy, params={"input": "word " * 200, "max_output_tokens": 8}))
    assert reply.facts.finish == "context_overflow"


async def test_policies_that_come_and_go_are_forgotten(server, policies, ask):
    async with PolicyClient(ModelSettings(), policies, most_pools=3) as client:
        for number in range(8):
            await client.respond(ask(inline_model(PolicySpec(base_urls=[server.url], model=f"m{number}"))))
        assert len(client.load()) <= 4


async def test_arguments_that_a_server_cannot_decode_cost_no_rollout(server, client, policies, ask, shapes):
    """Behave as vLLM up to 0.25: the arguments of earlier calls are decoded, and malformed ones are a 400."""

    def decodes(_):
        for message in server.bodies[-1]["messages"]:
            for call in message.get("tool_calls") or ():
                try:
                    json.loads(call["function"]["arguments"])
                except ValueError:
                    return shapes.error(400, "Expecting ',' delimiter")
        return shapes.completion()

    server.script = [decodes] * 3
    policy = policies.put("p", [server.url])
    written = '{"city": "He said "Oslo""}'
    items = [
        {"role": "user", "content": "q"},
        {"type": "function_call", "call_id": "a", "name": "f", "arguments": written},
        {"type": "function_call_output", "call_id": "a", "output": "that was no JSON"},
    ]
    for _ in range(2):
        await client.respond(ask(policy, params={"input": items}))
    sent = [body["messages"][1]["tool_calls"][0]["function"]["arguments"] for body in server.bodies]
    assert sent[0] == written
    assert [json.loads(arguments) for arguments in sent[1:]] == [{"INVALID_JSON": written}] * 2
