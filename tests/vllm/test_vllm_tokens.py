"""Agent loops through the model-call library at a real vLLM, and the tokens that they leave behind."""

from __future__ import annotations

import asyncio
from array import array
from typing import Any

import pytest

from gym.agents.base import Episode
from gym.model_client.client import ModelReply, ModelRequest, PolicyClient
from gym.model_client.tokens.capture import read_generated, read_tokenized, tokenize_request, with_asks
from gym.rollout import StopReason
from gym.testing.episodes import play
from gym.trajectory import Segments, TurnTokens
from gym.wire.responses.request import to_chat_request

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600), pytest.mark.anyio]

END = "<|end|>"
TOLERANCE = 0.02  # of a log-probability: the server computes in bfloat16, token by token or all at once


class Recorder:
    """A model that remembers what it was asked and what it answered."""

    def __init__(self, model: PolicyClient) -> None:
        self._model = model
        self.turns: list[tuple[dict[str, Any], ModelReply]] = []

    async def respond(self, request: ModelRequest) -> ModelReply:
        reply = await self._model.respond(request)
        self.turns.append((to_chat_request(request.params), reply))
        return reply


async def weather_episode(
    vllm: Any, client: PolicyClient, **params: Any
) -> tuple[Episode, Recorder, StopReason, float]:
    question = [{"role": "user", "content": "Is it warm in Lima right now?"}]
    row = {"environment": "weather", "responses_create_params": {"input": question, "temperature": 1.0, **params}}
    recorder = Recorder(client)
    played = await play(row, model=recorder, policy=lambda: vllm.record, within_s=100)
    return played.episode, recorder, played.reason, played.reward


async def talk(vllm: Any, client: PolicyClient, turns: int, **params: Any) -> list[tuple[dict[str, Any], TurnTokens]]:
    """A conversation without tools: each chat request with the tokens of its answer."""
    items: list[dict[str, Any]] = []
    found = []
    for turn in range(turns):
        items.append({"role": "user", "content": f"Go on, part {turn}."})
        asked = {"input": list(items), "temperature": 1.0, "seed": turn, "max_output_tokens": 400, **params}
        reply = await client.respond(request(vllm, asked, turn=turn))
        assert reply.tokens is not None
        assert reply.facts.finish == "stop"
        items += reply.items
        found.append((to_chat_request(asked), reply.tokens))
    return found


def request(vllm: Any, params: dict[str, Any], *, turn: int = 0) -> ModelRequest:
    return ModelRequest(
        policy=vllm.record,
        params=params,
        sticky_key="g",
        deadline=asyncio.get_running_loop().time() + 100,
        rollout_id="r",
        attempt=1,
        turn=turn,
    )


def text_of(reply: ModelReply) -> str:
    return "".join(part["text"] for item in reply.items if item["type"] == "message" for part in item["content"])


def segments_of(turns: list[TurnTokens]) -> Segments:
    segments = Segments()
    for tokens in turns:
        segments.add_turn(tokens, 1)
    return segments


def assert_captured(vllm: Any, chat: dict[str, Any], tokens: TurnTokens) -> None:
    """The ids are what the server makes of the messages, the log-probabilities what it makes of the ids."""
    assert tokens.source == "server"
    assert list(tokens.prompt_ids) == vllm.prompt_ids(chat)
    again = vllm.logprobs_of(list(tokens.prompt_ids), list(tokens.token_ids))
    assert list(tokens.logprobs) == pytest.approx(again, abs=TOLERANCE)


async def test_the_tool_loop_runs_the_weather_to_its_end(vllm: Any, client: PolicyClient) -> None:
    episode, recorder, reason, reward = await weather_episode(vllm, client, seed=1)
    assert reason is StopReason.COMPLETED
    assert reward == 1.0
    assert len(recorder.turns) == 2
    assert {(call.name, call.failed, str(call.arguments)) for call in episode.trajectory.tool_calls} == {
        ("get_weather", False, "{'city': 'Lima'}")
    }
    assert episode.trajectory.final_text == "The weather in Lima is cold"
    assert episode.trajectory.usage.input_tokens == sum(
        len(reply.tokens.prompt_ids) for _, reply in recorder.turns if reply.tokens is not None
    )


async def test_the_tokens_of_a_tool_loop_are_the_servers_own(vllm: Any, client: PolicyClient) -> None:
    episode, recorder, _, _ = await weather_episode(vllm, client, seed=2)
    for chat, reply in recorder.turns:
        assert reply.tokens is not None
        assert_captured(vllm, chat, reply.tokens)
        assert len(reply.tokens.token_ids) == reply.facts.usage.output_tokens
    called, told = (vllm.text_of(list(reply.tokens.token_ids)) for _, reply in recorder.turns if reply.tokens)
    assert called.startswith('<tool_call>{"name": "get_weather", "arguments": {"city": "Lima"}}</tool_call>')
    assert told == episode.trajectory.final_text + END


async def test_a_tool_loop_whose_history_renders_as_it_was_generated_is_one_segment(
    vllm: Any, client: PolicyClient
) -> None:
    episode, recorder, _, _ = await weather_episode(vllm, client, seed=3)
    [segment] = episode.trajectory.segments.segments
    last = recorder.turns[-1][1].tokens
    assert last is not None
    assert segment.token_ids == array("i", [*last.prompt_ids, *last.token_ids])
    assert sum(segment.loss_mask) == sum(reply.facts.usage.output_tokens for _, reply in recorder.turns)


async def test_generated_ids_read_as_the_text_that_was_given(vllm: Any, client: PolicyClient) -> None:
    reply = await client.respond(request(vllm, {"input": "Tell me a story.", "temperature": 1.0, "seed": 5}))
    assert reply.tokens is not None
    assert len(reply.tokens.token_ids) > 5
    assert vllm.text_of(list(reply.tokens.token_ids)) == text_of(reply) + END


async def test_talk_is_captured_turn_by_turn_and_cut_where_a_prompt_reads_differently(
    vllm: Any, client: PolicyClient
) -> None:
    turns = await talk(vllm, client, 4)
    for chat, tokens in turns:
        assert_captured(vllm, chat, tokens)
    breaks = 0
    before: list[int] = []
    for _, tokens in turns:
        breaks += list(tokens.prompt_ids)[: len(before)] != before
        before = [*tokens.prompt_ids, *tokens.token_ids]
    segments = segments_of([tokens for _, tokens in turns]).segments
    assert len(segments) == 1 + breaks > 1, "random tokens are hardly ever those that their text reads as"
    for segment in segments:
        assert sum(segment.loss_mask) > 0
    generated = [token for _, tokens in turns for token in tokens.token_ids]
    trained = [t for s in segments for t, bit in zip(s.token_ids, s.loss_mask, strict=True) if bit]
    assert trained == generated


async def test_talk_in_tokens_that_their_text_reads_as_is_one_segment(vllm: Any, client: PolicyClient) -> None:
    turns = await talk(vllm, client, 4, structured_outputs={"regex": "[0-9]{8}"})
    for chat, tokens in turns:
        assert list(tokens.prompt_ids) == vllm.prompt_ids(chat)
    [segment] = segments_of([tokens for _, tokens in turns]).segments
    assert segment.token_ids == array("i", [*turns[-1][1].prompt_ids, *turns[-1][1].token_ids])
    assert sum(segment.loss_mask) == 4 * 9


async def test_ids_read_from_texts_and_from_tokenize_are_those_that_the_server_gives_by_itself(vllm: Any) -> None:
    chat = to_chat_request({"model": "weatherman", "input": "Tell me a story.", "temperature": 1.0, "seed": 6})
    native, level = read_generated(vllm.post("/v1/chat/completions", with_asks(chat, "native")))
    completion = vllm.post("/v1/chat/completions", with_asks(chat, "text"))
    texts, lesser = read_generated(completion)
    assert (level, lesser) == ("native", "text")
    assert native is not None
    assert texts is not None
    assert texts.prompt_ids is None
    assert texts.token_ids == native.token_ids
    assert read_tokenized(vllm.post("/tokenize", tokenize_request(chat)), completion) == native.prompt_ids
