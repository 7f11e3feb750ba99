"""The agent `stepped`: an episode of a stepped environment with a model whose answers are given."""

from __future__ import annotations

from typing import Any

import pytest

from gym.environments.base import Environment, Step, SteppedEnvironment, tool
from gym.environments.codecs import Codec, TextCodec, ToolCodec
from gym.jsontypes import JsonObject
from gym.limits import Limits
from gym.rollout import StopReason
from gym.testing.answers import Answers, called, said
from gym.testing.episodes import PlayedEpisode
from gym.testing.episodes import play as play_episode

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
    codec: Codec = ToolCodec(MOVE, argument="direction")


class MappedCorridor(Corridor):
    """The same, with a tool beside."""

    name = "mapped_corridor"

    @tool
    def look(self) -> str:
        """Look at the map."""
        return "two to the right"


async def play(answers: Any, cls: type[Environment[Any]] = Corridor, *, max_turns: int = 16) -> PlayedEpisode:
    model = answers if isinstance(answers, Answers) else Answers(answers)
    row = cls.example_row()
    return await play_episode(row, model=model, environment=cls, limits=Limits(max_turns=max_turns))


def shown(played: PlayedEpisode) -> list[str]:
    return [str(item["content"]) for item in played.trajectory.items if item.get("role") == "user"]


@pytest.mark.anyio
async def test_a_model_that_acts_well_sees_each_observation_and_is_paid_for_each_step() -> None:
    played = await play(["<action>right</action>", "I go on.\nright"])

    assert played.reason is StopReason.COMPLETED
    assert shown(played) == ['{"place":0}', '{"place":1}', '{"place":2}']
    assert [(step.turn, step.action, step.reward, step.done) for step in played.trajectory.steps] == [
        (0, "right", -0.25, False),
        (1, "right", 1.0, True),
    ]
    assert (played.reward, played.components) == (0.75, {"steps": 2.0})


@pytest.mark.anyio
async def test_the_first_request_is_the_tasks_input_and_the_first_observation() -> None:
    model = Answers(["right", "right"])
    await play(model)

    assert model.requests[0]["input"] == [
        {"role": "system", "content": "walk"},
        {"role": "user", "content": '{"place":0}'},
    ]
    assert [item.get("role") for item in model.requests[1]["input"]] == ["system", "user", "assistant", "user"]
    assert "tools" not in model.requests[0]


@pytest.mark.anyio
async def test_what_is_no_action_is_told_and_costs_a_turn_but_no_step() -> None:
    played = await play(["up", "right"], max_turns=2)

    assert played.reason is StopReason.MAX_TURNS
    assert shown(played)[1] == "That was no valid action: 'up' is neither left nor right"
    assert len(played.trajectory.steps) == 1


@pytest.mark.anyio
async def test_an_episode_that_the_environment_cuts_is_truncated() -> None:
    played = await play(["left"] * 4)

    assert played.reason is StopReason.TRUNCATED
    assert played.trajectory.steps[-1].truncated
    assert played.reward == -1.0


@pytest.mark.anyio
async def test_the_last_turn_is_still_acted_on_and_may_complete_the_episode() -> None:
    assert (await play(["right", "right"], max_turns=2)).reason is StopReason.COMPLETED
    assert (await play(["right", "left"], max_turns=2)).reason is StopReason.MAX_TURNS


@pytest.mark.anyio
async def test_half_an_answer_is_not_acted_on() -> None:
    played = await play(Answers(["right"], finish="max_tokens"))

    assert played.reason is StopReason.MAX_TOKENS
    assert played.trajectory.steps == []


@pytest.mark.anyio
async def test_each_call_of_the_action_is_a_step_until_the_episode_is_over() -> None:
    calls = [called("move", {"direction": "right"}, f"c{number}") for number in range(3)]
    played = await play([[said("I run"), *calls]], CalledCorridor)

    outputs = [(item["call_id"], item["output"]) for item in played.trajectory.items if "output" in item]
    assert played.reason is StopReason.COMPLETED
    assert outputs == [("c0", '{"place":1}'), ("c1", '{"place":2}'), ("c2", '{"error":"the episode is over"}')]
    assert len(played.trajectory.steps) == 2


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("arguments", "told"), [("{", "not valid JSON"), ("[]", "JSON object"), ("{}", "`direction` is missing")]
)
async def test_a_call_that_cannot_be_read_is_answered_with_why(arguments: str, told: str) -> None:
    played = await play([called("move", arguments), said("I give up")], CalledCorridor)

    assert played.reason is StopReason.COMPLETED
    assert [told in item["output"] for item in played.trajectory.items if "output" in item] == [True]


@pytest.mark.anyio
async def test_tools_beside_the_actions_are_run_and_cost_no_step() -> None:
    model = Answers([[said("right"), called("look", {})], called("fly", {}), "right", "right"])
    played = await play(model, MappedCorridor)

    assert played.reason is StopReason.COMPLETED
    assert [call.failed for call in played.trajectory.tool_calls] == [False, True]
    assert [step.turn for step in played.trajectory.steps] == [2, 3]
    assert [each["name"] for each in model.requests[0]["tools"]] == ["look"]


@pytest.mark.parametrize(
    ("text", "action"),
    [("<action>a</action> or <action>\nb </action>", "b"), ("so\n  c  \n\n", "c"), ("", "")],
)
def test_the_last_tagged_action_counts_else_the_last_line(text: str, action: str) -> None:
    assert TextCodec().acts([said(text)])[0].action == action
