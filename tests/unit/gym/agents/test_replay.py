"""A rollout that is handed back goes on from the model calls that it had completed."""

from __future__ import annotations

import asyncio
import dataclasses
from array import array
from collections.abc import Callable
from typing import Any

import pytest

from gym.agents.base import Episode
from gym.agents.replay import pack, recorded, request_digest, unpack
from gym.agents.tool_loop import ToolLoop
from gym.environments.base import Environment, Row, tool
from gym.environments.hosting.session import EnvironmentSession
from gym.environments.hosting.threads import EnvironmentThreads
from gym.environments.registry import environment_type
from gym.jsontypes import JsonObject
from gym.limits import Limits
from gym.model_client.client import ModelReply, ModelRequest
from gym.model_client.routing.served_model import inline_model
from gym.policy import PolicySpec
from gym.rollout import StopReason
from gym.task import Task
from gym.trajectory import CallFacts, Trajectory, TurnTokens, Usage

pytestmark = pytest.mark.anyio
TURNS = 5
POLICY = inline_model(PolicySpec(base_urls=["http://127.0.0.1:9/v1"], model="m"))


class Dice(Environment[Row]):
    """Throws, the same for the same seed."""

    name = "dice"
    row_model = Row

    def setup(self) -> None:
        self.thrown = 0

    @tool
    def throw(self) -> int:
        """Throw."""
        self.thrown += 1
        return self.seed + self.thrown

    def verify(self, trajectory: Trajectory) -> float:
        return 1.0

    @classmethod
    def example_row(cls) -> JsonObject:
        return {"responses_create_params": {"input": "throw"}}


class Model:
    """Asks for throws, then ends; hangs at the call `hangs_at`. Its tokens go on from the turn before, or break off."""

    def __init__(self, *, hangs_at: int = -1, breaks_at: int = -1, tokens: bool = True) -> None:
        self.asked: list[int] = []
        self.hangs_at, self.breaks_at, self.tokens = hangs_at, breaks_at, tokens
        self.hanging = asyncio.Event()

    async def respond(self, request: ModelRequest) -> ModelReply:
        turn = request.turn
        if turn == self.hangs_at:
            self.hanging.set()
            await asyncio.Event().wait()
        self.asked.append(turn)
        call = {"type": "function_call", "call_id": f"c{turn}", "name": "throw", "arguments": "{}"}
        message = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "done"}]}
        first = 1000 if turn == self.breaks_at else 0
        prompt = array("i", range(first, first + 10 * (turn + 1)))
        sampled = array("i", range(first + 10 * (turn + 1), first + 10 * (turn + 1) + 5))
        return ModelReply(
            items=[call] if turn < TURNS - 1 else [message],
            tokens=TurnTokens(prompt, sampled, array("f", [-0.5] * 5), ended=True) if self.tokens else None,
            facts=CallFacts(
                endpoint="http://server",
                finish="stop",
                usage=Usage(len(prompt), 5, 1, 2),
                version_before=turn,
                version_after=turn + 1,
                duration_s=0.25,
                attempts=1,
            ),
        )


async def begin(model: Any, *, seed: int = 7, started: float | None = None) -> Episode:
    task = Task(
        task_id="t", environment="dice", agent="tool_loop", params={"input": "throw", "temperature": 1.0},
        data=Dice.example_row(),
    )  # fmt: skip
    session = EnvironmentSession(environment_type(Dice), task.data, seed=seed, executor=EnvironmentThreads(1))
    await session.setup()
    options = {} if started is None else {"started": started}
    return Episode(
        task=task, rollout_id="b:0:0", group_id="b:0", attempt=1, limits=Limits(), environment=session, model=model,
        policy=lambda: POLICY, deadline=asyncio.get_running_loop().time() + 60,
        trajectory=Trajectory(params=task.params), **options,
    )  # fmt: skip


async def interrupted(model: Any, hanging: Model) -> bytes:
    """Run until the model hangs, hand the rollout back, and give what goes along."""
    episode = await begin(model)
    running = asyncio.create_task(ToolLoop().run(episode))
    await asyncio.wait_for(hanging.hanging.wait(), 20)
    running.cancel()
    await asyncio.wait({running})
    return pack(recorded(episode), attempt=1, elapsed_s=3.0)


def content(episode: Episode) -> dict[str, Any]:
    """A trajectory without the times of its calls."""
    trajectory = episode.trajectory
    return {
        "items": trajectory.items,
        "tool_calls": trajectory.tool_calls,
        "usage": trajectory.usage,
        "segments": trajectory.segments.segments,
        "calls": [
            dataclasses.replace(call, facts=dataclasses.replace(call.facts, started_s=0.0)) for call in trajectory.calls
        ],
    }


@pytest.mark.parametrize("make", [Model, lambda **k: Model(breaks_at=2, **k), lambda **k: Model(tokens=False, **k)])
async def test_no_completed_call_is_made_again_and_the_trajectory_is_as_if_nothing_had_happened(
    make: Callable[..., Model],
) -> None:
    whole = await begin(make())
    assert await ToolLoop().run(whole) is StopReason.COMPLETED
    first = make(hangs_at=3)
    kept = await interrupted(first, first)
    second = make()
    replay = unpack(kept, attempt=1, model=second)
    assert replay is not None
    episode = await begin(replay)
    assert await ToolLoop().run(episode) is StopReason.COMPLETED
    assert (first.asked, second.asked) == ([0, 1, 2], [3, 4])
    assert content(episode) == content(whole)


async def test_a_replayed_call_keeps_its_time_and_counts_as_model_time() -> None:
    first, second = Model(hangs_at=3), Model()
    kept = await interrupted(first, first)
    replay = unpack(kept, attempt=1, model=second)
    assert replay is not None
    assert replay.elapsed_s == 3.0
    earlier = [each.call.facts.started_s for each in replay.calls]
    episode = await begin(replay)
    await ToolLoop().run(episode)
    assert [call.facts.started_s for call in episode.trajectory.calls[:3]] == earlier
    assert episode.model_s >= 0.75


async def test_what_was_not_replayed_yet_is_kept_when_the_rollout_is_handed_back_again() -> None:
    first = Model(hangs_at=4)
    kept = await interrupted(first, first)
    untouched = unpack(kept, attempt=1, model=Model())
    assert untouched is not None
    episode = await begin(untouched)
    await episode.call_model(tools=episode.environment.tools)
    again = unpack(pack(recorded(episode), attempt=1, elapsed_s=4.0), attempt=1, model=Model())
    assert again is not None
    before = unpack(kept, attempt=1, model=Model())
    assert before is not None
    assert [(each.digest, each.reply()) for each in again.calls] == [(e.digest, e.reply()) for e in before.calls]
    third = Model()
    final = unpack(pack(again.calls, attempt=1, elapsed_s=4.0), attempt=1, model=third)
    episode = await begin(final)
    await ToolLoop().run(episode)
    assert third.asked == [4]


async def test_a_replay_ends_where_the_conversation_takes_another_turn() -> None:
    first, second = Model(hangs_at=3), Model()
    kept = await interrupted(first, first)
    episode = await begin(unpack(kept, attempt=1, model=second), seed=8)  # its tools answer otherwise
    await ToolLoop().run(episode)
    assert second.asked == [1, 2, 3, 4]
    assert len(recorded(episode)) == TURNS


async def test_calls_of_another_attempt_and_what_cannot_be_read_are_not_replayed() -> None:
    first = Model(hangs_at=1)
    kept = await interrupted(first, first)
    assert unpack(kept, attempt=2, model=first) is None
    assert unpack(kept[:-3], attempt=1, model=first) is None
    assert unpack(b"", attempt=1, model=first) is None


async def test_a_record_that_is_too_large_keeps_its_first_calls() -> None:
    first = Model(hangs_at=4)
    episode = await begin(first)
    running = asyncio.create_task(ToolLoop().run(episode))
    await asyncio.wait_for(first.hanging.wait(), 20)
    running.cancel()
    calls = recorded(episode)
    whole = pack(calls, attempt=1, elapsed_s=0.0)
    cut = unpack(pack(calls, attempt=1, elapsed_s=0.0, most_bytes=len(whole) - 1), attempt=1, model=first)
    assert cut is not None
    assert [each.call.turn for each in cut.calls] == [0, 1]
    assert pack(calls, attempt=1, elapsed_s=0.0, most_bytes=10) == b""


def test_a_request_is_told_apart_by_all_that_is_in_it_and_by_nothing_else() -> None:
    request = {"input": [{"role": "user", "content": "a"}], "temperature": 1.0, "tools": [{"name": "t"}]}
    same = {"tools": [{"name": "t"}], "temperature": 1.0, "input": [{"content": "a", "role": "user"}]}
    assert request_digest(request) == request_digest(same)
    others = [request | {"temperature": 0.5}, request | {"input": []}, request | {"tools": []}]
    assert len({request_digest(each) for each in [request, *others]}) == 4
