"""Model calls made of token ids, at a scripted server whose template drops earlier reasoning."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import orjson
import pytest

from gym.agents.base import Episode
from gym.errors import ModelRejected, ModelUnreachable
from gym.limits import Limits
from gym.model_client.client import ModelReply, ModelRequest, PolicyClient
from gym.model_client.forward import ChatCall
from gym.model_client.http.urls import EndpointUrl
from gym.model_client.routing.served_model import ServedModel, inline_model
from gym.model_client.tokens.token_in import TokenCall, complete
from gym.policy import PolicySpec
from gym.rollout import StopReason
from gym.task import Task
from gym.testing.episodes import play
from gym.testing.model_server.server import ScriptedModelOptions, ScriptedModelServer
from gym.testing.scripted_policy.tokenizer import END_ID, decode
from gym.trajectory import CallFacts, Segments, Trajectory, TurnTokens, Usage
from gym.wire.errors import BadCompletion

pytestmark = pytest.mark.anyio

RENDER, GENERATE = "/v1/chat/completions/render", "/inference/v1/generate"
NOTE = {"type": "function", "name": "note", "parameters": {"type": "object"}}


@pytest.fixture
async def forgetful(anyio_backend: str) -> AsyncIterator[ScriptedModelServer]:
    """A server whose template drops the reasoning of earlier turns, and whose policy always reasons."""
    async with ScriptedModelServer(
        ScriptedModelOptions(history="strip_reasoning", always_reason=True, max_model_len=4096)
    ) as server:
        yield server


def policy_at(server: ScriptedModelServer, **fields: Any) -> ServedModel:
    spec = {"api": "tokens", "tool_parser": "hermes", "reasoning_parser": "qwen3"} | fields
    return inline_model(PolicySpec(base_urls=[server.url], model="any", **spec))


def chat_at(server: ScriptedModelServer) -> ServedModel:
    return inline_model(PolicySpec(base_urls=[server.url], model="any"))


class Recorder:
    """A model that remembers its answers."""

    def __init__(self, client: PolicyClient) -> None:
        self._client = client
        self.replies: list[ModelReply] = []

    async def respond(self, request: Any) -> ModelReply:
        self.replies.append(await self._client.respond(request))
        return self.replies[-1]


async def run(
    policy: ServedModel, client: PolicyClient, environment: str, text: str
) -> tuple[Episode, StopReason, Recorder, float]:
    """An episode of the tool loop, with its reward."""
    params: dict[str, Any] = {"input": [{"role": "user", "content": text}]}
    row = {"environment": environment, "responses_create_params": params, "expected_count": 3, "initial_count": 0}
    recorder = Recorder(client)
    played = await play(row, model=recorder, policy=lambda: policy)
    return played.episode, played.reason, recorder, played.reward


async def talk(
    ask: Callable[..., Any], client: PolicyClient, policy: ServedModel, turns: int = 3, **params: Any
) -> tuple[Segments, list[ModelReply]]:
    """A conversation without tools."""
    items: list[dict[str, Any]] = []
    segments, replies = Segments(), []
    tokens: TurnTokens | None = None
    for turn in range(turns):
        items.append({"role": "user", "content": f"What is {turn} + {turn} ="})
        reply = await client.respond(ask(policy, params={"input": list(items), **params}, turn=turn, prefix=tokens))
        tokens = reply.tokens
        assert tokens is not None
        segments.add_turn(tokens, None)
        items += reply.items
        replies.append(reply)
    return segments, replies


async def test_a_tool_loop_is_one_segment_where_chat_gives_one_a_turn(forgetful, client):
    question = "add 1 then add 2 then get the count"
    as_chat, reason, _, reward = await run(chat_at(forgetful), client, "stateful_counter", question)
    assert (reason, reward) == (StopReason.COMPLETED, 1.0)
    assert len(as_chat.trajectory.segments.segments) == len(as_chat.trajectory.calls) == 4
    episode, reason, recorder, reward = await run(policy_at(forgetful), client, "stateful_counter", question)
    assert (reason, reward) == (StopReason.COMPLETED, 1.0)
    [segment] = episode.trajectory.segments.segments
    generated = [token for reply in recorder.replies for token in reply.tokens.token_ids]
    assert [t for t, bit in zip(segment.token_ids, segment.loss_mask, strict=True) if bit] == generated
    last = recorder.replies[-1].tokens
    assert segment.token_ids == array("i", [*last.prompt_ids, *last.token_ids])
    assert len(segment.policy_versions) == 4
    assert decode(segment.token_ids).count("<think>") == 4
    assert decode(segment.token_ids).count("<|im_end|>") == decode(segment.token_ids).count("<|im_start|>")


async def test_the_weather_is_solved_in_tokens(forgetful, client):
    episode, reason, recorder, reward = await run(
        policy_at(forgetful), client, "weather", "What's the weather like in Lima?"
    )
    assert (reason, reward) == (StopReason.COMPLETED, 1.0)
    assert [item["type"] for item in recorder.replies[0].items] == ["reasoning", "function_call"]
    assert [call.arguments for call in episode.trajectory.tool_calls] == [{"city": "Lima"}]
    assert len(episode.trajectory.segments.segments) == 1
    assert episode.trajectory.usage.output_tokens == sum(len(reply.tokens.token_ids) for reply in recorder.replies)


async def test_an_answer_in_tokens_is_the_one_that_chat_gives(client, ask):
    async with ScriptedModelServer() as server:
        policy = policy_at(server, reasoning_parser=None)
        (chat, [of_chat, *_]), (tokens, [of_tokens, *_]) = [
            await talk(ask, client, each) for each in (chat_at(server), policy)
        ]
        assert [record.path for record in server.records[3:]] == [RENDER, GENERATE] * 3, "rendered once where it fits"
    assert tokens.segments == chat.segments
    assert of_tokens.items == of_chat.items
    assert (of_tokens.facts.finish, of_tokens.facts.usage) == (of_chat.facts.finish, of_chat.facts.usage)
    assert client.load()[policy.name]["prompts"] == {"first": 1, "kept": 2}


async def test_a_spliced_prompt_is_rendered_twice_and_counted(forgetful, client, ask):
    policy = policy_at(forgetful)
    segments, _ = await talk(ask, client, policy)
    assert len(segments.segments) == 1
    assert [record.path for record in forgetful.records] == [RENDER, GENERATE] + [RENDER, RENDER, GENERATE] * 2
    assert client.load()[policy.name]["prompts"] == {"first": 1, "spliced": 2}


async def test_without_the_tokens_before_it_a_turn_begins_a_segment(forgetful, client, ask):
    policy = policy_at(forgetful)
    _, [first, *_] = await talk(ask, client, policy, 1)
    items = [{"role": "user", "content": "What is 0 + 0 ="}, *first.items, {"role": "user", "content": "And now?"}]
    again = await client.respond(ask(policy, params={"input": items}, turn=1))
    segments = Segments()
    for reply in (first, again):
        segments.add_turn(reply.tokens, None)
    assert len(segments.segments) == 2


async def test_tokens_that_nothing_can_go_on_from_begin_a_segment_and_are_counted(forgetful, client, ask):
    policy = policy_at(forgetful)
    _, [first, *_] = await talk(ask, client, policy, 1)
    strange = TurnTokens(first.tokens.prompt_ids, [7, 8, 9], [0.0, 0.0, 0.0], ended=True)
    items = [{"role": "user", "content": "What is 0 + 0 ="}, *first.items, {"role": "user", "content": "And now?"}]
    again = await client.respond(ask(policy, params={"input": items}, turn=1, prefix=strange))
    assert list(again.tokens.prompt_ids)[-4:] != [7, 8, 9]
    assert client.load()[policy.name]["prompts"] == {"first": 1, "broken": 1}


async def test_a_turn_cut_by_its_limit_is_closed_and_gone_on_from(forgetful, client, ask):
    segments, replies = await talk(ask, client, policy_at(forgetful), max_output_tokens=2)
    assert [reply.facts.finish for reply in replies] == ["max_tokens"] * 3
    [segment] = segments.segments
    for before, after in pairwise(replies):
        so_far = [*before.tokens.prompt_ids, *before.tokens.token_ids]
        assert list(after.tokens.prompt_ids)[: len(so_far) + 1] == [*so_far, END_ID]
    assert sum(segment.loss_mask) == 6


async def test_a_call_that_cannot_be_read_is_plain_text(forgetful, client, ask):
    text = "[[raw-arguments note {not json]]"
    params = {"input": text, "tools": [NOTE]}
    reply = await client.respond(ask(policy_at(forgetful), params=params))
    [_, message] = reply.items
    assert message["content"][0]["text"] == '<tool_call>{"name": "note", "arguments": {not json}</tool_call>'
    assert reply.facts.finish == "stop"
    assert reply.tokens.ended is True


async def test_a_stop_text_ends_a_turn_without_an_end_mark(client, ask):
    async with ScriptedModelServer() as server:
        policy = policy_at(server, reasoning_parser=None)
        reply = await client.respond(ask(policy, params={"input": "What is 4 + 3 =", "stop": ["</answer>"]}))
        assert reply.items[0]["content"][0]["text"] == "<answer>7"
        assert (reply.facts.finish, reply.tokens.ended) == ("stop", False)


async def test_an_answer_that_a_limit_cut_is_cut_though_a_call_was_read(client, ask):
    async with ScriptedModelServer() as server:
        params = {"input": 'Go. [[call note {"a": 1}]] [[finish length]]', "tools": [NOTE]}
        reply = await client.respond(ask(policy_at(server), params=params))
    assert reply.facts.finish == "max_tokens"
    assert (reply.items[-1]["type"], reply.items[-1]["status"]) == ("function_call", "incomplete")


async def test_a_prompt_that_does_not_fit_is_an_overflow(client, ask):
    async with ScriptedModelServer(ScriptedModelOptions(max_model_len=64)) as server:
        reply = await client.respond(ask(policy_at(server), params={"input": "word " * 100}))
        assert (reply.facts.finish, reply.items, reply.tokens) == ("context_overflow", [], None)


async def test_tokens_that_do_not_fit_are_an_overflow_though_what_is_rendered_fits(client, ask):
    options = ScriptedModelOptions(max_model_len=64, history="strip_reasoning")
    async with ScriptedModelServer(options) as server:
        policy = policy_at(server)
        thinking = f"[[reason {'so ' * 70}]] [[say yes]]"
        first = await client.respond(ask(policy, params={"input": [{"role": "user", "content": "hm " + thinking}]}))
        assert first.facts.finish == "max_tokens"
        items = [{"role": "user", "content": "hi"}, *first.items, {"role": "user", "content": "And now?"}]
        second = await client.respond(ask(policy, params={"input": items}, turn=1, prefix=first.tokens))
        assert second.facts.finish == "context_overflow"
        assert server.records[-1].path == GENERATE


@pytest.mark.parametrize("failures", [1, 2])
async def test_a_server_that_is_away_for_a_moment_is_asked_again(forgetful, client, ask, failures):
    forgetful.behave(fail_next=failures, fail_status=503, retry_after_s=0.0)
    reply = await client.respond(ask(policy_at(forgetful)))
    assert (reply.facts.finish, reply.facts.attempts) == ("stop", failures + 1)
    assert [record.path for record in forgetful.records] == [RENDER] * (failures + 1) + [GENERATE]


async def test_a_server_without_the_routes_refuses_the_call(server, client, ask, policies):
    policy = policies.put("p", [server.url], api="tokens")
    with pytest.raises(ModelRejected, match="404"):
        await client.respond(ask(policy))


async def test_a_server_that_hangs_in_any_exchange_is_cut_at_the_deadline(forgetful, client, ask):
    forgetful.behave(hang_rate=1.0)
    with pytest.raises(ModelUnreachable, match="deadline"):
        await client.respond(ask(policy_at(forgetful), within_s=0.2))


async def test_tools_that_no_parser_reads_are_refused_before_anything_is_sent(forgetful, client, ask):
    with pytest.raises(ModelRejected, match="tool_parser"):
        await client.respond(ask(policy_at(forgetful, tool_parser=None), params={"input": "x", "tools": [NOTE]}))
    assert forgetful.records == []


async def test_the_versions_are_those_of_the_generation(forgetful, client, ask):
    forgetful.weight_version = "7"
    reply = await client.respond(ask(policy_at(forgetful)))
    assert (reply.facts.version_before, reply.facts.version_after) == (7, 7)


async def test_a_streamed_call_gets_its_answer_in_one_chunk(forgetful, client):
    chunks: list[dict[str, Any]] = []

    async def keep(arrived: list[dict[str, Any]]) -> None:
        chunks.extend(arrived)

    call = ChatCall(
        policy=policy_at(forgetful),
        body={"messages": [{"role": "user", "content": "What is 4 + 3 ="}], "stream": True},
        sticky_key="g",
        deadline=asyncio.get_running_loop().time() + 20,
        request_id="r-1-0",
        on_chunks=keep,
    )
    reply = await client.complete(call)
    assert chunks[0]["choices"][0]["delta"]["content"] == "<answer>7</answer>"
    assert reply.tokens.ended is True


async def test_a_server_that_generates_tokens_only_is_asked_for_their_text(client, ask):
    async with ScriptedModelServer(ScriptedModelOptions(generates_text=False)) as server:
        policy = policy_at(server, reasoning_parser=None)
        whole = await client.respond(ask(policy, params={"input": "What is 4 + 3 ="}))
        stopped = await client.respond(ask(policy, params={"input": "What is 4 + 3 =", "stop": ["</answer>"]}))
    texts = [reply.items[0]["content"][0]["text"] for reply in (whole, stopped)]
    assert texts == ["<answer>7</answer>", "<answer>7"]


@pytest.mark.parametrize(
    "fields",
    [
        {"tool_parser": "hermes"},
        {"api": "tokens", "tool_parser": "unheard of"},
        {"api": "tokens", "reasoning_parser": "hermes"},
        {"api": "tokens", "token_ids": False},
    ],
)
async def test_a_policy_that_cannot_be_driven_by_tokens_is_refused(fields):
    with pytest.raises(ValueError, match=r"tokens|parser"):
        PolicySpec(base_urls=["http://x"], model="m", **fields)


class Script:
    """Answers exchanges in order and keeps what was asked."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, dict[str, Any]]] = []

    async def post(self, url: Any, body: dict[str, Any]) -> tuple[int, str | None, bytes]:
        self.asked.append((url.path, body))
        answer = self.answers.pop(0)
        return 200, None, answer if isinstance(answer, bytes) else orjson.dumps(answer)


RENDERED = {
    "request_id": "q",
    "token_ids": [1, 2],
    "token_offsets": None,
    "sampling_params": {"max_tokens": 900, "skip_special_tokens": True, "logprobs": 0},
}
GENERATED = {
    "usage": {"prompt_tokens": 2, "completion_tokens": 1},
    "choices": [{"text": "hi", "token_ids": [9], "finish_reason": "stop", "stop_reason": None, "logprobs": None}],
}


def token_call(*, earlier: TurnTokens | None = None, **body: Any) -> TokenCall:
    spec = PolicySpec(base_urls=["http://x"], model="m", api="tokens", tool_parser="hermes")
    messages = [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]
    return TokenCall(
        spec=spec,
        url=EndpointUrl.parse("http://x/v1"),
        body={"model": "m", "messages": messages, **body},
        earlier=earlier,
        reply_id="r-1-0",
    )


async def test_the_generation_has_the_callers_limit_and_shows_special_tokens():
    script = Script(RENDERED, GENERATED)
    completion, how = await complete(script.post, token_call(max_tokens=5, stream=True, stream_options={}))
    (render, asked), (generate, request) = script.asked
    assert (render, generate) == (RENDER, GENERATE)
    assert asked.keys() == {"model", "messages", "max_tokens"}
    assert request == {
        "request_id": "q",
        "token_ids": [1, 2],
        "sampling_params": {"max_tokens": 5, "skip_special_tokens": False, "logprobs": 0},
        "output_mode": "text",
        "stream": False,
    }
    assert how == "first"
    assert completion["choices"][0]["message"] == {"role": "assistant", "content": "hi"}


async def test_without_a_limit_the_server_takes_what_the_tokens_leave():
    script = Script(RENDERED, GENERATED)
    await complete(script.post, token_call())
    assert "max_tokens" not in script.asked[1][1]["sampling_params"]


async def test_a_prompt_with_images_is_never_spliced():
    script = Script({**RENDERED, "features": {"mm_hashes": {}}}, GENERATED)
    _, how = await complete(script.post, token_call(earlier=TurnTokens([5], [6], [0.0], ended=True)))
    assert how == "broken"
    assert script.asked[1][1]["token_ids"] == [1, 2]


async def test_a_stop_token_of_the_callers_is_no_end_mark():
    choice = {**GENERATED["choices"][0], "stop_reason": 9}
    for asked, ended in (([9], False), ([], True)):
        script = Script(RENDERED, {**GENERATED, "choices": [choice]})
        completion, _ = await complete(script.post, token_call(stop_token_ids=asked))
        assert completion["choices"][0]["ended"] is ended


@pytest.mark.parametrize(
    "answers",
    [[b"no json"], [[]], [{"token_ids": [1]}], [{**RENDERED, "token_ids": ["a"]}], [RENDERED, {"choices": []}]],
)
async def test_an_answer_that_is_none_is_the_servers_fault(answers):
    with pytest.raises(BadCompletion):
        await complete(Script(*answers).post, token_call())


class Fixed:
    """Answers each call alike, and keeps what it was asked to go on from."""

    def __init__(self, **fields: Any) -> None:
        self.fields = fields
        self.prefixes: list[TurnTokens | None] = []

    async def respond(self, request: ModelRequest) -> ModelReply:
        self.prefixes.append(request.prefix)
        values: dict[str, Any] = {
            "items": [{"type": "message", "role": "assistant", "content": "x"}],
            "facts": CallFacts(
                endpoint="e",
                finish="stop",
                usage=Usage(),
                version_before=None,
                version_after=None,
                duration_s=0.0,
                attempts=1,
            ),
            "tokens": TurnTokens([1], [2], [0.0], ended=True),
        }
        return ModelReply(**(values | self.fields))


@pytest.mark.parametrize(
    ("fields", "tools", "goes_on"),
    [({}, [], True), ({}, [NOTE], False), ({"items": []}, [], False), ({"tokens": None}, [], False)],
)
async def test_an_episode_goes_on_from_the_turn_before_unless_tools_or_history_changed(
    forgetful, fields, tools, goes_on
):
    model = Fixed(**fields)
    params = {"input": "hi"}
    episode = Episode(
        task=Task(task_id="t", environment="weather", agent="tool_loop", params=params, data={}),
        rollout_id="r",
        group_id="g",
        attempt=1,
        limits=Limits(),
        environment=None,  # type: ignore[arg-type]  # no tool is run
        model=model,
        policy=lambda: policy_at(forgetful),
        deadline=0.0,
        trajectory=Trajectory(params=params),
    )
    await episode.call_model(tools=[])
    await episode.call_model(tools=tools)
    assert model.prefixes[0] is None
    assert (model.prefixes[1] is not None) is goes_on


class Counting(ThreadPoolExecutor):
    """Counts what is done in its threads."""

    done = 0

    def submit(self, call, /, *args, **kwargs):
        self.done += 1
        return super().submit(call, *args, **kwargs)


async def test_a_long_text_is_parsed_in_a_thread_and_a_short_one_in_place():
    threads = Counting(1)
    asyncio.get_running_loop().set_default_executor(threads)
    for text, done in (("hi", 0), ("<tool_call>" * 20_000, 1)):
        choice = {**GENERATED["choices"][0], "text": text}
        completion, _ = await complete(Script(RENDERED, {**GENERATED, "choices": [choice]}).post, token_call())
        assert completion["choices"][0]["message"]["content"] == text
        assert threads.done == done
