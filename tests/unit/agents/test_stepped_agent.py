"""The agent `stepped`: an episode of a stepped environment with a model whose answers are given."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, ClassVar

import pytest

from gym.agents.base import Episode
from gym.agents.stepped import Stepped
from gym.environments.base import Environment, Step, SteppedEnvironment, tool
from gym.environments.codecs import Codec, TextCodec, ToolCodec
from gym.environments.registry import environment_type
from gym.environments.session import EnvironmentSession
from gym.environments.threads import EnvironmentThreads
from gym.jsontypes import JsonObject
from gym.limits import Limits
from gym.policy import PolicySpec
from gym.proxy.client import ModelReply, ModelRequest
from gym.proxy.policies import inline_record
from gym.reward import Reward
from gym.rollout import StopReason
from gym.task import Task
from gym.trajectory import Trajectory, Usage

POLICY = inline_record(PolicySpec(base_urls=["http://127.0.0.1:9/v1"], model="m"))
MOVE: JsonObject = {"type": "function", "name": "move", "parameters": {"type": "object"}}


class Corridor(SteppedEnvironment[Any]):
    """Walk two steps to the right; after four steps it is over."""

    name = "corridor"

    def reset(self) -> JsonObject:
        self.place = self.steps = 0
        return {"place": 0}

    def step(self, action: Any) -> Step:
        if action not in ("left", "right"):
            raise ValueError(f"{action!r} is neither left nor right")
        self.place += 1 if action == "right" else -1
        self.steps += 1
        there, late = self.place == 2, self.steps == 4
        return Step(
            observation={"place": self.place},
            reward=1.0 if there else -0.25,
            done=there or late,
            truncated=late and not there,
        )

    @classmethod
    def example_row(cls) -> JsonObject:
        return {"responses_create_params": {"input": [{"role": "system", "content": "walk"}]}}


class CalledCorridor(Corridor):
    """The same, by a function."""

    name = "called_corridor"
    codec: ClassVar[Codec] = ToolCodec(MOVE, argument="direction")


class MappedCorridor(Corridor):
    """The same, with a tool beside."""

    name = "mapped_corridor"

    @tool
    def look(self) -> str:
        """Look at the map."""
        return "two to the right"


class Answers:
    """A model that gives its answers in order."""

    def __init__(self, answers: Sequence[str | JsonObject | list[JsonObject]], finish: Any = "stop") -> None:
        self.answers = list(answers)
        self.finish = finish
        self.requests: list[JsonObject] = []

    async def respond(self, request: ModelRequest) -> ModelReply:
        self.requests.append(request.params)
        answer = self.answers.pop(0)
        items = answer if isinstance(answer, list) else [said(answer) if isinstance(answer, str) else answer]
        return ModelReply(
            items=items,
            finish=self.finish,
            usage=Usage(),
            tokens=None,
            version_before=None,
            version_after=None,
            endpoint="here",
            duration_s=0.0,
            attempts=1,
        )


def said(text: str) -> JsonObject:
    return {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}


def called(call_id: str, arguments: str, name: str = "move") -> JsonObject:
    return {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments}


class Player:
    def __init__(self, cls: type[Environment[Any]], model: Answers, max_turns: int) -> None:
        self.cls, self.model, self.max_turns = cls, model, max_turns

    async def play(self) -> tuple[StopReason, Trajectory, Reward]:
        kind = environment_type(self.cls)
        row = kind.example_row or {}
        params = row["responses_create_params"]
        with EnvironmentThreads(1) as executor:
            session = EnvironmentSession(kind, row, seed=0, executor=executor)
            await session.setup()
            episode = Episode(
                task=Task(task_id="t", environment=kind.name, agent=kind.agent, params=params, data=row),
                rollout_id="r",
                group_id="g",
                attempt=1,
                limits=Limits(max_turns=self.max_turns),
                environment=session,
                model=self.model,
                policy=lambda: POLICY,
                deadline=asyncio.get_running_loop().time() + 20,
                trajectory=Trajectory(params=params),
            )
            reason = await Stepped().run(episode)
            reward = await session.verify(episode.trajectory)
            await session.close()
        assert isinstance(reward, Reward)
        return reason, episode.trajectory, reward


async def play(
    answers: Sequence[str | JsonObject | list[JsonObject]],
    cls: type[Environment[Any]] = Corridor,
    *,
    max_turns: int = 16,
    finish: str = "stop",
) -> tuple[StopReason, Trajectory, Reward]:
    return await Player(cls, Answers(answers, finish), max_turns).play()


def shown(trajectory: Trajectory) -> list[str]:
    return [str(item["content"]) for item in trajectory.items if item.get("role") == "user"]


@pytest.mark.anyio
async def test_a_model_that_acts_well_sees_each_observation_and_is_paid_for_each_step() -> None:
    reason, trajectory, reward = await play(["<action>right</action>", "I go on.\nright"])

    assert reason is StopReason.COMPLETED
    assert shown(trajectory) == ['{"place":0}', '{"place":1}', '{"place":2}']
    assert [(step.turn, step.action, step.reward, step.done) for step in trajectory.steps] == [
        (0, "right", -0.25, False),
        (1, "right", 1.0, True),
    ]
    assert (reward.value, reward.components) == (0.75, {"steps": 2.0})


@pytest.mark.anyio
async def test_the_first_request_is_the_tasks_input_and_the_first_observation() -> None:
    model = Answers(["right", "right"])
    await Player(Corridor, model, 16).play()

    assert model.requests[0]["input"] == [
        {"role": "system", "content": "walk"},
        {"role": "user", "content": '{"place":0}'},
    ]
    assert [item.get("role") for item in model.requests[1]["input"]] == ["system", "user", "assistant", "user"]
    assert "tools" not in model.requests[0]


@pytest.mark.anyio
async def test_what_is_no_action_is_told_and_costs_a_turn_but_no_step() -> None:
    reason, trajectory, _ = await play(["up", "right"], max_turns=2)

    assert reason is StopReason.MAX_TURNS
    assert shown(trajectory)[1] == "That was no valid action: 'up' is neither left nor right"
    assert len(trajectory.steps) == 1


@pytest.mark.anyio
async def test_an_episode_that_the_environment_cuts_is_truncated() -> None:
    reason, trajectory, reward = await play(["left"] * 4)

    assert reason is StopReason.TRUNCATED
    assert trajectory.steps[-1].truncated
    assert reward.value == -1.0


@pytest.mark.anyio
async def test_the_last_turn_is_still_acted_on_and_may_complete_the_episode() -> None:
    assert (await play(["right", "right"], max_turns=2))[0] is StopReason.COMPLETED
    assert (await play(["right", "left"], max_turns=2))[0] is StopReason.MAX_TURNS


@pytest.mark.anyio
async def test_half_an_answer_is_not_acted_on() -> None:
    reason, trajectory, _ = await play(["right"], finish="max_tokens")

    assert reason is StopReason.MAX_TOKENS
    assert trajectory.steps == []


@pytest.mark.anyio
async def test_each_call_of_the_action_is_a_step_until_the_episode_is_over() -> None:
    calls = [called(f"c{number}", '{"direction": "right"}') for number in range(3)]
    reason, trajectory, _ = await play([[said("I run"), *calls]], CalledCorridor)

    outputs = [(item["call_id"], item["output"]) for item in trajectory.items if "output" in item]
    assert reason is StopReason.COMPLETED
    assert outputs == [("c0", '{"place":1}'), ("c1", '{"place":2}'), ("c2", '{"error":"the episode is over"}')]
    assert len(trajectory.steps) == 2


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("arguments", "told"), [("{", "not valid JSON"), ("[]", "JSON object"), ("{}", "`direction` is missing")]
)
async def test_a_call_that_cannot_be_read_is_answered_with_why(arguments: str, told: str) -> None:
    reason, trajectory, _ = await play([called("c", arguments), said("I give up")], CalledCorridor)

    assert reason is StopReason.COMPLETED
    assert [told in item["output"] for item in trajectory.items if "output" in item] == [True]


@pytest.mark.anyio
async def test_tools_beside_the_actions_are_run_and_cost_no_step() -> None:
    model = Answers([[said("right"), called("c", "{}", "look")], called("d", "{}", "fly"), "right", "right"])
    reason, trajectory, _ = await Player(MappedCorridor, model, 16).play()

    assert reason is StopReason.COMPLETED
    assert [call.failed for call in trajectory.tool_calls] == [False, True]
    assert [step.turn for step in trajectory.steps] == [2, 3]
    assert [each["name"] for each in model.requests[0]["tools"]] == ["look"]


@pytest.mark.parametrize(
    ("text", "action"),
    [("<action>a</action> or <action>\nb </action>", "b"), ("so\n  c  \n\n", "c"), ("", "")],
)
def test_the_last_tagged_action_counts_else_the_last_line(text: str, action: str) -> None:
    assert TextCodec().acts([said(text)])[0].action == action
