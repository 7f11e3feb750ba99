"""The scripted server's answers: vLLM's shapes, streamed and whole."""

from typing import Any

import aiohttp
import orjson
import pytest

from gym.testing.model_server.server import ScriptedModelOptions, ScriptedModelServer
from gym.testing.scripted_policy.tokenizer import END_ID, decode, encode, render
from gym.trajectory import Segments, TurnTokens

pytestmark = pytest.mark.anyio

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
WEATHER: dict[str, Any] = {
    "model": "policy",
    "messages": [
        {"role": "developer", "content": "You are a helpful assistant."},
        {"role": "user", "content": [{"type": "text", "text": "what's it like in Zürich?"}]},
    ],
    "tools": [TOOL],
}


async def post(
    http: aiohttp.ClientSession, body: dict[str, Any], path: str = "/v1/chat/completions", status: int = 200
) -> Any:
    async with http.post(path, json=body) as response:
        assert response.status == status, await response.text()
        return await response.json()


async def stream(http: aiohttp.ClientSession, body: dict[str, Any]) -> list[dict[str, Any]]:
    async with http.post("/v1/chat/completions", json={**body, "stream": True}) as response:
        assert response.content_type == "text/event-stream"
        events = (await response.text()).split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    return [orjson.loads(event.removeprefix("data: ")) for event in events[:-2]]


def user(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "policy", "messages": [{"role": "user", "content": text}], **more}


def joined(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """Join chunks as a client does."""
    whole: dict[str, Any] = {"reasoning": "", "content": "", "calls": [], "token_ids": [], "logprobs": []}
    for chunk in chunks:
        for choice in chunk["choices"]:
            delta = choice["delta"]
            whole["reasoning"] += delta.get("reasoning") or ""
            whole["content"] += delta.get("content") or ""
            for call in delta.get("tool_calls") or ():
                if "id" in call:
                    whole["calls"].append({**call["function"], "id": call["id"]})
                else:
                    whole["calls"][call["index"]]["arguments"] += call["function"]["arguments"]
            whole["token_ids"] += choice.get("token_ids") or []
            whole["logprobs"] += (choice["logprobs"] or {}).get("content", [])
            whole["finish"] = choice["finish_reason"]
    return whole


async def test_a_tool_call_has_the_shape_of_vllm(http: aiohttp.ClientSession) -> None:
    answer = await post(http, WEATHER)
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "policy"
    assert answer["prompt_token_ids"] is None
    [choice] = answer["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["token_ids"] is None
    assert choice["message"]["content"] is None
    [call] = choice["message"]["tool_calls"]
    assert call["type"] == "function"
    assert call["function"] == {"name": "get_weather", "arguments": '{"city": "Zürich"}'}
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


async def test_token_ids_are_those_of_tokenize(http: aiohttp.ClientSession) -> None:
    answer = await post(http, {**WEATHER, "return_token_ids": True})
    told = await post(http, {"messages": WEATHER["messages"], "tools": [TOOL]}, "/tokenize")
    assert answer["prompt_token_ids"] == told["tokens"]
    assert told["count"] == len(told["tokens"]) == answer["usage"]["prompt_tokens"]
    ids = answer["choices"][0]["token_ids"]
    assert ids[-1] == END_ID
    back = await post(http, {"tokens": ids}, "/detokenize")
    again = await post(http, {"prompt": back["prompt"], "return_token_strs": True}, "/tokenize")
    assert again["tokens"] == ids
    assert "".join(again["token_strs"]) == back["prompt"]


async def carry_on(http: aiohttp.ClientSession, text: str, turns: int) -> Segments:
    """Play a conversation with a tool that answers ok, collecting tokens as the farm does."""
    segments = Segments()
    messages: list[dict[str, Any]] = [{"role": "user", "content": text}]
    for _ in range(turns):
        answer = await post(http, {"messages": messages, "return_token_ids": True, "tools": [TOOL]})
        [choice] = answer["choices"]
        ids = choice["token_ids"]
        segments.add_turn(TurnTokens(answer["prompt_token_ids"], ids, [0.0] * len(ids)), None)
        messages.append(choice["message"])
        messages += [
            {"role": "tool", "tool_call_id": call["id"], "content": "ok"}
            for call in choice["message"].get("tool_calls", ())
        ]
    return segments


STEPS = (
    '[[reason hm <b>]] [[say Grüße]] [[call a {"ü": [1, 2.50]}]] [[call b]]\n---\n[[raw-arguments a not json]]\n---\n'
)


async def test_an_episode_of_many_turns_is_one_segment(http: aiohttp.ClientSession) -> None:
    segments = await carry_on(http, STEPS, 4)
    assert len(segments.segments) == 1


async def test_stripped_reasoning_begins_a_new_segment() -> None:
    options = ScriptedModelOptions(history="strip_reasoning")
    async with ScriptedModelServer(options) as server, aiohttp.ClientSession(server.url) as http:
        segments = await carry_on(http, STEPS, 4)
    assert len(segments.segments) == 2


async def test_a_cut_turn_stays_in_its_segment(http: aiohttp.ClientSession) -> None:
    ask = {"role": "user", "content": "[[say one two three four five]]\n---\n[[say more]]"}
    first = await post(http, {"messages": [ask], "return_token_ids": True, "max_tokens": 3})
    [choice] = first["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["content"] == "one two thre"
    later = await post(
        http,
        {"messages": [ask, choice["message"], {"role": "user", "content": "go on"}], "return_token_ids": True},
    )
    before = first["prompt_token_ids"] + choice["token_ids"]
    assert later["prompt_token_ids"][: len(before)] == before


async def test_earlier_turns_count_as_cached(http: aiohttp.ClientSession) -> None:
    first = await post(http, user("[[repeat-calls 3 a]]" + " x" * 200))
    assert first["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
    messages = [*user("[[repeat-calls 3 a]]" + " x" * 200)["messages"], first["choices"][0]["message"]]
    later = await post(http, {"messages": [*messages, {"role": "tool", "content": "ok"}]})
    cached = later["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert 0 < cached < later["usage"]["prompt_tokens"]
    assert cached % 16 == 0


BODIES = [
    WEATHER,
    user("What is 4 + 3 ="),
    user('[[reason thinking of ünïcödé]] [[say hello there]] [[call a {"x": "yyyyyyyy"}]] [[call b]]', tools=[TOOL]),
    user("[[say one two three four]]", max_tokens=2),
    user("[[say one two three four]]", stop=["thr"]),
    user("[[reason a long thought]] [[say hi]]", max_tokens=3),
    user("[[say a number]]", response_format={"type": "json_object"}),
    user("x", tools=[TOOL], tool_choice="required"),
    user("x", tools=[TOOL], tool_choice={"type": "function", "function": {"name": "get_weather"}}),
    user("[[raw-arguments a not json]]", tools=[TOOL]),
]


@pytest.mark.parametrize("body", BODIES)
async def test_a_streamed_answer_adds_up_to_the_whole_one(http: aiohttp.ClientSession, body: dict[str, Any]) -> None:
    body = {**body, "return_token_ids": True, "logprobs": True, "seed": 4}
    [choice] = (await post(http, body))["choices"]
    chunks = await stream(http, body)
    streamed = joined(chunks)
    message = choice["message"]
    assert streamed["reasoning"] == (message["reasoning"] or "")
    assert streamed["content"] == (message["content"] or "")
    calls = [{**call["function"], "id": call["id"]} for call in message.get("tool_calls", ())]
    assert streamed["calls"] == calls
    assert streamed["token_ids"] == choice["token_ids"]
    assert streamed["logprobs"] == choice["logprobs"]["content"]
    assert streamed["finish"] == choice["finish_reason"]
    assert chunks[0]["prompt_token_ids"] == encode(render(body["messages"], body.get("tools")))
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}


async def test_a_stream_shows_each_token_in_a_chunk_of_its_own(http: aiohttp.ClientSession) -> None:
    chunks = await stream(http, user("[[say one two three]]"))
    texts = [chunk["choices"][0]["delta"].get("content") for chunk in chunks]
    assert texts == ["", "one ", "two ", "thre", "e", None]


async def test_usage_comes_last_in_a_stream_where_it_is_wanted(http: aiohttp.ClientSession) -> None:
    body = user("hello")
    chunks = await stream(http, {**body, "stream_options": {"include_usage": True}})
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == (await post(http, body))["usage"]
    assert all("usage" not in chunk for chunk in chunks[:-1])


async def test_a_call_that_is_cut_short_is_plain_text(http: aiohttp.ClientSession) -> None:
    body = user('[[say look]] [[call a {"x": 12345}]]', tools=[TOOL], max_tokens=6)
    [choice] = (await post(http, body))["choices"]
    assert choice["finish_reason"] == "length"
    assert "tool_calls" not in choice["message"]
    assert choice["message"]["content"].startswith('look<tool_call>{"name": "a"')


async def test_a_stop_text_ends_the_answer_and_is_named(http: aiohttp.ClientSession) -> None:
    [choice] = (await post(http, user("[[say one two three]]", stop=["three", "two"])))["choices"]
    assert (choice["message"]["content"], choice["finish_reason"], choice["stop_reason"]) == ("one ", "stop", "two")


async def test_reasoning_has_its_own_field_and_count(http: aiohttp.ClientSession) -> None:
    answer = await post(http, user("[[reason I think]] [[say so]]"))
    assert answer["choices"][0]["message"]["reasoning"] == "I think"
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == len(encode("I think"))


async def test_older_servers_name_reasoning_otherwise() -> None:
    options = ScriptedModelOptions(reasoning_field="reasoning_content", always_reason=True)
    async with ScriptedModelServer(options) as server, aiohttp.ClientSession(server.url) as http:
        answer = await post(http, user("hello"))
        chunks = await stream(http, user("hello"))
    message = answer["choices"][0]["message"]
    assert message["reasoning_content"]
    assert (
        "".join(c["choices"][0]["delta"].get("reasoning_content", "") for c in chunks) == message["reasoning_content"]
    )


async def test_log_probabilities_follow_from_the_seed(http: aiohttp.ClientSession) -> None:
    async def logprobs(seed: int) -> list[float]:
        answer = await post(http, user("[[say one two three]]", logprobs=True, seed=seed))
        return [entry["logprob"] for entry in answer["choices"][0]["logprobs"]["content"]]

    assert await logprobs(1) == await logprobs(1)
    assert await logprobs(1) != await logprobs(2)
    assert all(-1 < value <= 0 for value in await logprobs(3))


async def test_log_probabilities_carry_text_or_ids_and_alternatives(http: aiohttp.ClientSession) -> None:
    body = user("[[say Zü]]", logprobs=True, top_logprobs=3, return_token_ids=True)
    [choice] = (await post(http, body))["choices"]
    entries = choice["logprobs"]["content"]
    assert [entry["token"] for entry in entries] == ["Z", "ü", "<|im_end|>"]
    assert entries[1]["bytes"] == list("ü".encode())
    assert [entry["top_logprobs"][0]["token"] for entry in entries] == [entry["token"] for entry in entries]
    assert {len(entry["top_logprobs"]) for entry in entries} == {3}
    [choice] = (await post(http, {**body, "return_tokens_as_token_ids": True}))["choices"]
    assert [entry["token"] for entry in choice["logprobs"]["content"]] == [
        f"token_id:{token_id}" for token_id in choice["token_ids"]
    ]
    alternatives = [token["token"] for entry in choice["logprobs"]["content"] for token in entry["top_logprobs"]]
    assert all(token.startswith("token_id:") for token in alternatives)


async def test_a_server_without_token_ids_ignores_that_they_are_wanted() -> None:
    async with (
        ScriptedModelServer(ScriptedModelOptions(token_ids=False)) as server,
        aiohttp.ClientSession(server.url) as http,
    ):
        answer = await post(http, user("hello", return_token_ids=True))
        chunks = await stream(http, user("hello", return_token_ids=True))
    assert answer["prompt_token_ids"] is None
    assert answer["choices"][0]["token_ids"] is None
    assert joined(chunks)["token_ids"] == []


async def test_required_and_named_choices_call_whatever_the_text_says(http: aiohttp.ClientSession) -> None:
    other = {"type": "function", "function": {"name": "other", "parameters": {"type": "object"}}}
    [required] = (await post(http, user("hi", tools=[other, TOOL], tool_choice="required")))["choices"]
    assert required["message"]["tool_calls"][0]["function"] == {"name": "get_weather", "arguments": '{"city": "here"}'}
    assert (required["finish_reason"], required["message"]["content"]) == ("tool_calls", "")
    choice = {"type": "function", "function": {"name": "other"}}
    [named] = (await post(http, user("hi", tools=[TOOL, other], tool_choice=choice)))["choices"]
    assert named["message"]["tool_calls"][0]["function"] == {"name": "other", "arguments": "{}"}
    assert (named["finish_reason"], named["message"]["content"]) == ("stop", "")


async def test_without_tools_or_with_none_nothing_is_called(http: aiohttp.ClientSession) -> None:
    [choice] = (await post(http, {**WEATHER, "tool_choice": "none"}))["choices"]
    assert choice["finish_reason"] == "stop"
    assert "tool_calls" not in choice["message"]


async def test_one_call_a_turn_where_parallel_ones_are_not_wanted(http: aiohttp.ClientSession) -> None:
    body = user("[[call a]] [[call b]]", tools=[TOOL])
    assert len((await post(http, body))["choices"][0]["message"]["tool_calls"]) == 2
    one = await post(http, {**body, "parallel_tool_calls": False})
    assert len(one["choices"][0]["message"]["tool_calls"]) == 1


async def test_content_fits_a_json_schema(http: aiohttp.ClientSession) -> None:
    schema = {"type": "object", "properties": {"age": {"type": "integer", "minimum": 1}}, "required": ["age"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}
    [choice] = (await post(http, user("hi", response_format=wanted)))["choices"]
    assert orjson.loads(choice["message"]["content"]) == {"age": 1}
    [said] = (await post(http, user('[[say {"age": 9}]]', response_format=wanted)))["choices"]
    assert said["message"]["content"] == '{"age": 9}'
    [chosen] = (await post(http, user("hi", structured_outputs={"choice": ["yes", "no"]})))["choices"]
    assert chosen["message"]["content"] == "yes"


async def test_plain_completions_take_text_or_ids(http: aiohttp.ClientSession) -> None:
    body = {"model": "m", "max_tokens": 50, "return_token_ids": True, "logprobs": 1}
    [by_text] = (await post(http, {**body, "prompt": "What is 4 + 3 ="}, "/v1/completions"))["choices"]
    ids = encode("What is 4 + 3 =")
    [by_ids] = (await post(http, {**body, "prompt": ids}, "/v1/completions"))["choices"]
    assert by_text == by_ids
    assert by_text["text"] == "<answer>7</answer>"
    assert by_text["prompt_token_ids"] == ids
    assert decode(by_text["token_ids"]) == "<answer>7</answer><|im_end|>"
    assert len(by_text["logprobs"]["tokens"]) == len(by_text["logprobs"]["token_logprobs"]) == len(by_text["token_ids"])


async def test_plain_completions_end_after_16_tokens(http: aiohttp.ClientSession) -> None:
    answer = await post(http, {"prompt": "[[say " + "word " * 100 + "]]"}, "/v1/completions")
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 16


@pytest.mark.parametrize("length", [10, 20_000])
async def test_the_same_request_gets_the_same_answer_under_another_id(http: aiohttp.ClientSession, length: int) -> None:
    body = user("x" * length, return_token_ids=True, logprobs=True)
    first, second = await post(http, body), await post(http, body)
    assert first.pop("id") != second.pop("id")
    assert {**first, "created": 0} == {**second, "created": 0}
