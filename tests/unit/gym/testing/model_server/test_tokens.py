"""The scripted server's calls with token ids: a conversation becomes ids, ids become an answer."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gym.testing.model_server.server import ScriptedModelOptions, ScriptedModelServer
from gym.testing.model_server.token_routes import conversation
from gym.testing.scripted_policy.tokenizer import decode, encode, render

pytestmark = pytest.mark.anyio

RENDER, GENERATE = "/v1/chat/completions/render", "/inference/v1/generate"
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="<>"), max_size=20)
MESSAGE = st.fixed_dictionaries({"role": st.sampled_from(["user", "system", "developer", "tool"]), "content": TEXT})


async def post(http: aiohttp.ClientSession, path: str, body: dict[str, Any], status: int = 200) -> dict[str, Any]:
    async with http.post(path, json=body) as response:
        assert response.status == status, await response.text()
        answer: dict[str, Any] = await response.json()
    return answer


def asked(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": "any", "messages": [{"role": "user", "content": text}], "logprobs": True, **fields}


async def test_what_is_rendered_generates_what_chat_answers(http):
    body = asked("[[reason hm]] [[say yes]] [[call f {}]]", tools=[TOOL], seed=3, return_token_ids=True)
    chat = await post(http, "/v1/chat/completions", body)
    rendered = await post(http, RENDER, body)
    assert rendered["token_ids"] == chat["prompt_token_ids"]
    generated = await post(http, GENERATE, {**rendered, "output_mode": "text"})
    [of_chat], [choice] = chat["choices"], generated["choices"]
    assert choice["token_ids"] == of_chat["token_ids"]
    assert choice["text"] == '<think>hm</think>yes<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", None)
    assert [entry["logprob"] for entry in choice["logprobs"]["content"]] == [
        entry["logprob"] for entry in of_chat["logprobs"]["content"]
    ]
    assert generated["usage"]["prompt_tokens"] == chat["usage"]["prompt_tokens"]


async def test_tokens_alone_are_the_default(http):
    rendered = await post(http, RENDER, asked("What is 4 + 3 ="))
    [choice] = (await post(http, GENERATE, rendered))["choices"]
    assert "text" not in choice
    assert decode(choice["token_ids"]) == "<answer>7</answer><|im_end|>"
    assert [entry["token_id"] for entry in choice["logprobs"]["content"]] == choice["token_ids"]


async def test_the_prompt_is_the_ids_that_were_sent_whatever_they_read_as(http):
    letters = [ord(letter) for letter in "What is 4 + 3 ="]  # one token each, where the tokenizer packs four
    ids = [*encode("<|im_start|>user\n"), *letters, *encode("<|im_end|><|im_start|>assistant\n")]
    body = {"model": "any", "token_ids": ids, "sampling_params": {}, "return_token_ids": True}
    generated = await post(http, GENERATE, body)
    assert generated["prompt_token_ids"] == ids
    assert generated["usage"]["prompt_tokens"] == len(ids)
    assert decode(generated["choices"][0]["token_ids"]) == "<answer>7</answer><|im_end|>"


async def test_limits_and_stop_texts_count(http):
    rendered = await post(http, RENDER, asked("What is 4 + 3 =", max_tokens=2))
    [cut] = (await post(http, GENERATE, {**rendered, "output_mode": "text"}))["choices"]
    assert (cut["finish_reason"], len(cut["token_ids"])) == ("length", 2)
    rendered = await post(http, RENDER, asked("What is 4 + 3 =", stop=["</"]))
    [stopped] = (await post(http, GENERATE, {**rendered, "output_mode": "text"}))["choices"]
    assert (stopped["text"], stopped["stop_reason"]) == ("<answer>7", "</")


async def test_what_shapes_an_answer_goes_along(http):
    rendered = await post(http, RENDER, asked("hello", tools=[TOOL], tool_choice="required"))
    [choice] = (await post(http, GENERATE, {**rendered, "output_mode": "text"}))["choices"]
    assert choice["text"].startswith("<tool_call>")


async def test_versions_are_those_of_the_weights(server, http):
    server.weight_version = "12"
    rendered = await post(http, RENDER, asked("hello"))
    [choice] = (await post(http, GENERATE, rendered))["choices"]
    assert choice["weight_versions"] == [{"version": "12", "start": 0, "end": len(choice["token_ids"])}]


async def test_what_does_not_fit_is_refused_in_both():
    async with (
        ScriptedModelServer(ScriptedModelOptions(max_model_len=32)) as server,
        aiohttp.ClientSession(server.url) as http,
    ):
        too_long = await post(http, RENDER, asked("word " * 50), 400)
        assert too_long["error"]["param"] == "input_tokens"
        ids = encode("word " * 50)
        refused = await post(http, GENERATE, {"model": "any", "token_ids": ids, "sampling_params": {}}, 400)
        assert refused["error"]["message"] == f"Input length ({len(ids)}) exceeds model's maximum context length (32)."
        rendered = await post(http, RENDER, asked("hi"))
        rendered["sampling_params"]["max_tokens"] = 1000
        [choice] = (await post(http, GENERATE, rendered))["choices"]
        assert len(choice["token_ids"]) <= 32 - len(rendered["token_ids"])


@pytest.mark.parametrize("body", [{"token_ids": []}, {"token_ids": ["a"]}, {"token_ids": [1]}])
async def test_a_body_without_its_fields_is_refused(http, body):
    assert (await post(http, GENERATE, {"model": "any", **body}, 400))["error"]["type"] == "Bad Request"


async def test_both_calls_fail_as_they_are_told(server, http):
    server.behave(fail_next=2)
    await post(http, RENDER, asked("hello"), 503)
    await post(http, GENERATE, asked("hello"), 503)


@given(st.lists(MESSAGE, min_size=1, max_size=4))
def test_a_conversation_is_read_back_from_its_text(messages):
    assert conversation(render(messages, [TOOL])) == (messages, [TOOL])


@given(TEXT, TEXT)
def test_what_an_assistant_said_is_read_back(reasoning, content):
    call = {"id": "call_0", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    message = {"role": "assistant", "reasoning": reasoning or None, "content": content, "tool_calls": [call]}
    assert conversation(render([message])) == ([message], None)
