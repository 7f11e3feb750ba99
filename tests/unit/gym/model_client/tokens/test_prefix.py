"""Field `required_prefix_token_ids`: its receivers, learning from answers, and one segment per conversation."""

from __future__ import annotations

from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pydantic import ValidationError

from gym.agents.base import Episode
from gym.errors import ModelRejected
from gym.model_client.http.refusal import Refusal
from gym.model_client.routing.served_model import ServedModel, inline_model
from gym.model_client.tokens.prefix import FIELD, MOST_MISSES, PrefixSupport
from gym.policy import PolicySpec
from gym.rollout import StopReason
from gym.testing.episodes import play
from gym.testing.model_server.server import ScriptedModelOptions, ScriptedModelServer
from gym.trajectory import TurnTokens

EARLIER = TurnTokens(array("i", [1, 2]), array("i", [3, 4]), [0.0, 0.0])


def spec(**fields: Any) -> PolicySpec:
    return PolicySpec(base_urls=["http://h:1"], model="m", **fields)


def asks(support: PrefixSupport, **fields: Any) -> bool:
    body = {"messages": []}
    extra = support.asks(spec(**fields), body, EARLIER)
    assert extra in ({}, {FIELD: [1, 2, 3, 4]})
    return bool(extra)


def test_an_unknown_endpoint_is_told_the_tokens_so_far():
    support = PrefixSupport()
    assert asks(support)
    assert support.describe() == "unknown"
    assert support.asks(spec(), {}, None) == {}  # there is no turn before
    assert support.asks(spec(), {FIELD: [9]}, EARLIER) == {}  # the caller has said it


def test_an_endpoint_that_honours_it_is_told_again():
    support = PrefixSupport()
    for _ in range(10):
        support.learn(EARLIER, array("i", [1, 2, 3, 4, 5]))
    assert asks(support)
    assert support.describe() == "accepted"


def test_an_endpoint_that_ignores_it_is_told_no_more_unless_the_policy_insists():
    support = PrefixSupport()
    for count in range(1, MOST_MISSES + 1):
        assert asks(support)
        support.learn(EARLIER, array("i", [1, 2, 3, 9]))
        assert (support.misses, support.hits) == (count, 0)
    assert not asks(support)
    assert asks(support, required_prefix=True)
    assert support.describe() == "ignored"


def test_single_misses_beside_many_hits_do_not_count():
    support = PrefixSupport()
    for _ in range(100):
        support.learn(EARLIER, [1, 2, 3, 4, 5])
    for _ in range(MOST_MISSES):
        support.learn(EARLIER, [1])
    assert asks(support)


@pytest.mark.parametrize(
    "fields", [{"required_prefix": False}, {"token_ids": False}, {"api": "tokens", "tool_parser": "hermes"}]
)
def test_policies_that_cannot_use_it_never_send_it(fields):
    assert not asks(PrefixSupport(), **fields)


def test_an_endpoint_that_refuses_it_is_told_no_more_even_where_the_policy_insists():
    support = PrefixSupport()
    refusal = Refusal("body.required_prefix_token_ids: Extra inputs are not permitted")
    assert not support.learn_refusal(refusal, sent=False)
    assert asks(support)
    assert not support.learn_refusal(Refusal("temperature is too high", param="temperature"), sent=True)
    assert support.learn_refusal(refusal, sent=True)
    assert not asks(support, required_prefix=True)
    assert support.describe() == "refused"


@pytest.mark.parametrize("fields", [{"api": "tokens"}, {"token_ids": False}])
def test_a_policy_that_cannot_insist_on_it_is_refused(fields):
    with pytest.raises(ValidationError, match="required_prefix"):
        spec(required_prefix=True, **fields)


@asynccontextmanager
async def forgetful(**options: Any) -> AsyncIterator[ScriptedModelServer]:
    """A server whose template drops the reasoning of earlier turns, and whose policy always reasons."""
    server = ScriptedModelOptions(history="strip_reasoning", always_reason=True, **options)
    async with ScriptedModelServer(server) as started:
        yield started


async def counted(client: Any, policy: ServedModel) -> tuple[Episode, StopReason, float]:
    """A tool loop of four turns."""
    params: dict[str, Any] = {"input": [{"role": "user", "content": "add 1 then add 2 then get the count"}]}
    row = {
        "environment": "stateful_counter",
        "responses_create_params": params,
        "expected_count": 3,
        "initial_count": 0,
    }
    played = await play(row, model=client, policy=lambda: policy)
    return played.episode, played.reason, played.reward


def support_of(client: Any, policy: ServedModel) -> str:
    [endpoint] = client.load()[policy.name]["endpoints"]
    return str(endpoint["required_prefix"])


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("mode", "fields", "segments", "learned"),
    [
        ("honour", {}, 1, "accepted"),
        ("honour", {"required_prefix": True}, 1, "accepted"),
        ("honour", {"required_prefix": False}, 4, "unknown"),
        ("ignore", {}, 4, "ignored"),
        ("refuse", {}, 4, "refused"),
        ("refuse", {"required_prefix": True}, 4, "refused"),
    ],
)
async def test_a_tool_loop_is_one_segment_where_the_server_honours_the_prefix(client, mode, fields, segments, learned):
    async with forgetful(required_prefix=mode) as server:
        policy = inline_model(PolicySpec(base_urls=[server.url], model="any", **fields))
        episode, reason, reward = await counted(client, policy)
    assert (reason, reward) == (StopReason.COMPLETED, 1.0)
    trajectory = episode.trajectory
    assert (len(trajectory.segments.segments), len(trajectory.calls)) == (segments, 4)
    assert trajectory.tokens_complete
    assert support_of(client, policy) == learned
    if segments == 1:
        [segment] = trajectory.segments.segments
        assert len(segment.policy_versions) == 4
        assert sum(segment.loss_mask) == trajectory.usage.output_tokens


@pytest.mark.anyio
async def test_a_refusal_costs_no_retry_and_no_call(clients):
    client = await clients(max_retries=0)
    async with forgetful(required_prefix="refuse") as server:
        policy = inline_model(PolicySpec(base_urls=[server.url], model="any"))
        episode, reason, _ = await counted(client, policy)
        assert reason is StopReason.COMPLETED
        assert server.stats["requests"] == len(episode.trajectory.calls) + 1


@pytest.mark.anyio
async def test_a_refusal_of_what_the_caller_himself_required_is_final(client, ask):
    async with forgetful(required_prefix="refuse") as server:
        policy = inline_model(PolicySpec(base_urls=[server.url], model="any"))
        with pytest.raises(ModelRejected, match="Extra inputs are not permitted"):
            await client.respond(ask(policy, params={"input": "x", FIELD: [1, 2]}))
        assert server.stats["requests"] == 1


@pytest.mark.anyio
async def test_a_prompt_that_only_tokenize_gives_is_asked_for_with_the_prefix(client, ask, server, shapes):
    """NeMo RL's server takes the field there too."""
    entries = [{"token": "token_id:5", "logprob": -0.5}]
    answer = shapes.completion(choice={"logprobs": {"content": entries}})
    server.script, server.tokens = [answer, answer], [7, 8, 9]
    policy = inline_model(PolicySpec(base_urls=[server.url], model="m"))
    first = await client.respond(ask(policy))
    assert first.tokens is not None
    await client.respond(ask(policy, prefix=first.tokens))
    assert FIELD not in server.tokenized[0]
    assert server.tokenized[1][FIELD] == server.bodies[1][FIELD] == [7, 8, 9, 5]
