"""The official clients, unmodified, run a tool loop; the capture equals the library's record."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Awaitable, Callable
from typing import Any

import openai
import pytest
from google import genai
from google.genai import types as google

from gym.model_client.client import PolicyClient
from gym.model_client.settings import ModelSettings
from gym.state.policies import PolicyCache
from gym.testing.episodes import play
from gym.testing.scripted_policy.tokenizer import decode
from gym.trajectory import ModelCall, Trajectory

pytestmark = pytest.mark.anyio

ROLLOUT = "batch:0:0"
QUESTIONS = {
    "one call": "What is the weather like in Lima?",
    "two calls at once": (
        'Go. [[reason Two cities.]] [[say I look.]] [[call get_weather {"city": "Lima"}]] '
        '[[call get_weather {"city": "Oslo"}]]'
    ),
}


async def library(farm: Any, question: str) -> tuple[Trajectory, list[dict[str, Any]]]:
    """The conversation as a worker runs it, and the tools that it offers."""
    cache = PolicyCache(farm.store, "library")
    await cache.refresh()
    record = cache.get("policy")
    params = {"input": [{"role": "user", "content": question}], "max_output_tokens": 400}
    row = {"environment": "weather", "responses_create_params": params}
    async with PolicyClient(ModelSettings(), cache) as client:
        played = await play(row, model=client, policy=lambda: record, rollout_id=ROLLOUT, group_id="batch:0")
    return played.episode.trajectory, played.tools


def weather(arguments: str | dict[str, Any]) -> str:
    """The tool, as the environment answers."""
    city = (json.loads(arguments) if isinstance(arguments, str) else arguments)["city"]
    report = {"city": city, "weather_description": f"The weather in {city} is cold."}
    return json.dumps(report, separators=(",", ":"))


async def responses_loop(base: str, question: str, tools: list[dict[str, Any]], stream: bool) -> str:
    async with openai.AsyncOpenAI(base_url=f"{base}/v1", api_key="none", max_retries=0) as client:
        items: list[Any] = [{"role": "user", "content": question}]
        while True:
            asked: Any = {"model": "any", "input": items, "tools": tools, "max_output_tokens": 400}
            if stream:
                async with client.responses.stream(**asked) as events:
                    async for _ in events:
                        pass
                    response: Any = await events.get_final_response()
            else:
                response = await client.responses.create(**asked)
            calls = [item for item in response.output if item.type == "function_call"]
            if not calls:
                return str(response.output_text)
            items += [item.model_dump(exclude_none=True, exclude={"parsed_arguments"}) for item in response.output]
            items += [
                {"type": "function_call_output", "call_id": call.call_id, "output": weather(call.arguments)}
                for call in calls
            ]
            for item in items:
                for part in item.get("content", ()) if item.get("type") == "message" else ():
                    part.pop("parsed", None)


async def chat_loop(base: str, question: str, tools: list[dict[str, Any]], stream: bool) -> str:
    nested: Any = [
        {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}
        for tool in tools
    ]
    async with openai.AsyncOpenAI(base_url=f"{base}/v1", api_key="none", max_retries=0) as client:
        messages: list[Any] = [{"role": "user", "content": question}]
        while True:
            asked: Any = {"model": "any", "messages": messages, "tools": nested, "max_tokens": 400}
            if stream:
                async with client.chat.completions.stream(**asked) as events:
                    async for _ in events:
                        pass
                    message: Any = (await events.get_final_completion()).choices[0].message
            else:
                message = (await client.chat.completions.create(**asked)).choices[0].message
            if not message.tool_calls:
                return str(message.content)
            said = message.model_dump(exclude_none=True, exclude={"parsed": True})
            for call in said["tool_calls"]:
                call["function"].pop("parsed_arguments", None)
                call.pop("index", None)
            messages.append(said)
            messages += [
                {"role": "tool", "tool_call_id": call.id, "content": weather(call.function.arguments)}
                for call in message.tool_calls
            ]


async def messages_loop(base: str, question: str, tools: list[dict[str, Any]], stream: bool) -> str:
    import anthropic

    offered: Any = [
        {
            "name": tool["name"],
            "description": tool["description"],
            "input_schema": tool["parameters"],
            **({"strict": tool["strict"]} if "strict" in tool else {}),
        }
        for tool in tools
    ]
    async with anthropic.AsyncAnthropic(base_url=base, api_key="none", max_retries=0) as client:
        messages: list[Any] = [{"role": "user", "content": question}]
        while True:
            asked: Any = {"model": "any", "messages": messages, "tools": offered, "max_tokens": 400}
            if stream:
                async with client.messages.stream(**asked) as events:
                    async for _ in events:
                        pass
                    message: Any = await events.get_final_message()
            else:
                message = await client.messages.create(**asked)
            uses = [block for block in message.content if block.type == "tool_use"]
            if not uses:
                return "".join(block.text for block in message.content if block.type == "text")
            messages.append({"role": "assistant", "content": message.content})
            messages.append(
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": use.id, "content": weather(use.input)} for use in uses
                    ],
                }
            )


async def gemini_loop(base: str, question: str, tools: list[dict[str, Any]], stream: bool) -> str:
    declared: Any = [
        {"name": tool["name"], "description": tool["description"], "parameters_json_schema": tool["parameters"]}
        for tool in tools
    ]
    client = genai.Client(api_key="none", http_options={"base_url": base}).aio
    async with client:
        contents: list[Any] = [google.UserContent(parts=[google.Part(text=question)])]
        config = google.GenerateContentConfig(
            tools=[google.Tool(function_declarations=declared)],
            max_output_tokens=400,
            thinking_config=google.ThinkingConfig(include_thoughts=True),
        )
        while True:
            said: list[Any] = []
            if stream:
                pieces = await client.models.generate_content_stream(model="any", contents=contents, config=config)
                # as the client's own chats keep them: each piece a content of its own
                async for piece in pieces:
                    said += [candidate.content for candidate in piece.candidates or ()]
                assert piece.usage_metadata.total_token_count > 0
            else:
                answer = await client.models.generate_content(model="any", contents=contents, config=config)
                said = [candidate.content for candidate in answer.candidates or ()]
            parts = [part for content in said for part in content.parts]
            calls = [part.function_call for part in parts if part.function_call]
            if not calls:
                return "".join(part.text for part in parts if part.text and not part.thought)
            results = [
                google.Part.from_function_response(name=call.name, response={"output": weather(call.args)})
                for call in calls
            ]
            contents += [*said, google.Content(role="user", parts=results)]


LOOPS = [responses_loop, chat_loop, messages_loop]
Loop = Callable[[str, str, list[dict[str, Any]], bool], Awaitable[str]]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS)
@pytest.mark.parametrize("loop", LOOPS)
async def test_a_captured_tool_loop_equals_what_the_library_records(farm, model, proxy, loop: Loop, question, stream):
    recorded, tools = await library(farm, question)
    text = await loop(f"{proxy}/rollouts/{ROLLOUT}", question, tools, stream)
    captured = await farm.captures.trajectory(ROLLOUT)
    assert text == recorded.final_text
    assert captured is not None
    assert len(captured.calls) == 2
    assert captured.items == recorded.items
    assert captured.segments.segments == recorded.segments.segments
    assert len(captured.segments.segments) == 1
    # outside the Responses API a client need not send reasoning back, so a request may have an item less
    ignored = {} if loop is responses_loop else {"request_items": 0}

    def timeless(call: ModelCall) -> ModelCall:
        facts = dataclasses.replace(call.facts, started_s=0.0, duration_s=0.0)
        return dataclasses.replace(call, facts=facts, **ignored)

    assert [timeless(call) for call in captured.calls] == [timeless(call) for call in recorded.calls]
    assert captured.tool_calls == recorded.tool_calls
    assert captured.usage == recorded.usage
    assert captured.tokens_complete


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS)
async def test_a_loop_by_gemini_is_captured_as_the_same_loop_by_chat(farm, model, proxy, question, stream):
    _, tools = await library(farm, question)
    for tool in tools:
        del tool["strict"]  # which functions of Gemini cannot say
    texts = [
        await loop(f"{proxy}/rollouts/{rollout}", question, tools, stream)
        for loop, rollout in ((chat_loop, "a:0:0"), (gemini_loop, "b:0:0"))
    ]
    by_chat, by_gemini = [await farm.captures.trajectory(rollout) for rollout in ("a:0:0", "b:0:0")]
    assert texts[0] == texts[1] == by_gemini.final_text
    assert by_gemini.segments.segments == by_chat.segments.segments
    assert len(by_gemini.segments.segments) == 1
    assert by_gemini.usage == by_chat.usage
    assert by_gemini.tokens_complete
    assert json.dumps(by_gemini.items).replace("b:0:0", "a:0:0") == json.dumps(by_chat.items)


TOKENS = {"api": "tokens", "tool_parser": "hermes", "reasoning_parser": "qwen3"}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("loop", LOOPS)
async def test_in_token_mode_a_tool_loop_is_one_segment_whatever_the_template_forgets(farm, loop: Loop, stream):
    forgetful = await farm.model(history="strip_reasoning", always_reason=True)
    await farm.serve(forgetful.url, **TOKENS)
    recorded, tools = await library(farm, QUESTIONS["two calls at once"])
    base = f"{await farm.proxy()}/rollouts/{ROLLOUT}"
    text = await loop(base, QUESTIONS["two calls at once"], tools, stream)
    captured = await farm.captures.trajectory(ROLLOUT)
    assert text == recorded.final_text
    assert len(captured.calls) == 2
    assert captured.segments.segments == recorded.segments.segments
    assert len(captured.segments.segments) == 1


@pytest.mark.parametrize("spec", [TOKENS, {"required_prefix": True}], ids=["tokens", "required prefix"])
async def test_a_turn_goes_on_from_the_tokens_that_another_process_recorded(farm, http, spec):
    forgetful = await farm.model(history="strip_reasoning", always_reason=True, required_prefix="honour")
    await farm.serve(forgetful.url, **spec)
    proxies = [await farm.proxy(), await farm.proxy()]
    messages: list[Any] = []
    for number in range(4):
        messages.append({"role": "user", "content": f"What is {number} + 3 ="})
        url = f"{proxies[number % 2]}/rollouts/r/v1/chat/completions"
        # what does not decide how the prompt is written may differ from turn to turn
        answer = await http.post(url, json={"messages": messages, "temperature": number / 10})
        messages.append({"role": "assistant", "content": answer.json()["choices"][0]["message"]["content"]})
    [segment] = (await farm.captures.trajectory("r")).segments.segments
    assert [version[:2] for version in segment.policy_versions] == _runs(segment.loss_mask)
    assert len(segment.policy_versions) == 4


def _runs(mask: bytearray) -> list[tuple[int, int]]:
    """Return the positions where the mask is 1."""
    edges = [place for place in range(len(mask) + 1) if bytes([0, *mask, 0])[place : place + 2] in (b"\0\1", b"\1\0")]
    return list(zip(edges[::2], edges[1::2], strict=True))


async def test_in_token_mode_other_tools_begin_a_new_segment(farm, http):
    forgetful = await farm.model(history="strip_reasoning", always_reason=True)
    await farm.serve(forgetful.url, **TOKENS)
    url = f"{await farm.proxy()}/rollouts/r/v1/chat/completions"
    messages: list[Any] = [{"role": "user", "content": "What is 1 + 3 ="}]
    said = (await http.post(url, json={"messages": messages})).json()["choices"][0]["message"]["content"]
    messages += [{"role": "assistant", "content": said}, {"role": "user", "content": "What is 2 + 3 ="}]
    tool = {"type": "function", "function": {"name": "note", "parameters": {"type": "object"}}}
    await http.post(url, json={"messages": messages, "tools": [tool]})
    segments = (await farm.captures.trajectory("r")).segments.segments
    assert len(segments) == 2
    assert "note" in decode(list(segments[1].token_ids))


@pytest.mark.parametrize("loop", [*LOOPS, gemini_loop])
async def test_a_tool_loop_without_a_rollout_is_answered_and_not_recorded(farm, model, proxy, loop: Loop):
    _, tools = await library(farm, QUESTIONS["one call"])
    assert "Lima" in await loop(proxy, QUESTIONS["one call"], tools, True)
    assert await farm.store.redis.keys("farm:cap:*") == []


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("rollout", ["", "/rollouts/r"])
async def test_log_probabilities_come_with_the_texts_of_their_tokens(farm, model, proxy, rollout, stream):
    async with openai.AsyncOpenAI(base_url=f"{proxy}{rollout}/v1", api_key="none", max_retries=0) as client:
        for number in range(2):  # the first call finds out what the server can do
            asked: Any = {
                "model": "any",
                "messages": [{"role": "user", "content": f"What is {number} + 3 ="}],
                "logprobs": True,
                "top_logprobs": 2,
            }
            if stream:
                async with client.chat.completions.stream(**asked) as events:
                    async for _ in events:
                        pass
                    choice: Any = (await events.get_final_completion()).choices[0]
            else:
                choice = (await client.chat.completions.create(**asked)).choices[0]
            tokens = choice.logprobs.content
            assert "".join(entry.token for entry in tokens).startswith(choice.message.content)
            assert all(entry.top_logprobs[0].token == entry.token for entry in tokens)
            assert not any("token_id" in top.token for entry in tokens for top in entry.top_logprobs)
    if rollout:
        trajectory = await farm.captures.trajectory("r")
        assert len(trajectory.segments.segments) == 2


async def test_the_models_are_the_policies(farm, proxy, model):
    import anthropic

    async with openai.AsyncOpenAI(base_url=f"{proxy}/v1", api_key="none") as client:
        assert [card.id async for card in client.models.list()] == ["policy"]
    async with anthropic.AsyncAnthropic(base_url=f"{proxy}/rollouts/r", api_key="none") as other:
        assert [card.id async for card in other.models.list()] == ["policy"]


async def test_a_client_reads_each_error_as_its_own_kind(proxy):
    import anthropic

    async with openai.AsyncOpenAI(base_url=f"{proxy}/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.UnprocessableEntityError) as refused:
            await client.responses.create(model="any", input="hi", background=True)
        assert (refused.value.param, refused.value.type) == ("background", "invalid_request_error")
        with pytest.raises(openai.NotFoundError, match="there is no policy 'gone'"):
            await client.responses.create(model="any", input="hi", extra_headers={"x-farm-policy": "gone"})
        with pytest.raises(openai.BadRequestError) as long:
            await client.responses.create(model="any", input="long " * 300_000)
        assert long.value.code == "context_length_exceeded"
    async with anthropic.AsyncAnthropic(base_url=proxy, api_key="none", max_retries=0) as other:
        with pytest.raises(anthropic.BadRequestError, match="prompt is too long"):
            await other.messages.create(
                model="any", max_tokens=5, messages=[{"role": "user", "content": "long " * 300_000}]
            )
        with pytest.raises(anthropic.UnprocessableEntityError) as mcp:
            await other.messages.create(
                model="any",
                max_tokens=5,
                messages=[{"role": "user", "content": "hi"}],
                extra_body={"mcp_servers": [{}]},
            )
        assert mcp.value.body["error"]["type"] == "invalid_request_error"
