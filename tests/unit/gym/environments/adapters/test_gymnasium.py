"""Environments of the real package Gymnasium, played in text."""

from __future__ import annotations

import re
from collections import deque
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from gym.environments.adapters.gymnasium import Gymnasium
from gym.environments.adapters.gymnasium_text import as_json, picture, read_action
from gym.environments.base import Environment
from gym.environments.registry import load_registry
from gym.environments.settings import EnvironmentEntry
from gym.jsontypes import JsonObject
from gym.limits import Limits
from gym.rollout import StopReason
from gym.testing.answers import Answers, called
from gym.testing.episodes import PlayedEpisode, play


def lake(**options: Any) -> type[Environment[Any]]:
    return Gymnasium.configured("lake", {"id": "FrozenLake-v1", "kwargs": {"is_slippery": False}, **options})


def seen(played: PlayedEpisode) -> list[str]:
    return [str(item["content"]) for item in played.trajectory.items if item.get("role") == "user"]


def last_seen(request: JsonObject) -> str:
    return str(request["input"][-1]["content"])


@pytest.mark.anyio
async def test_frozen_lake_is_crossed_by_words() -> None:
    moves = ["down", "Down.", "right", "I am close.\n<action>RIGHT</action>", "1", "right"]
    environment = lake()
    played = await play(environment.example_row(), model=Answers(moves), environment=environment)

    assert (played.reason, played.reward) == (StopReason.COMPLETED, 1.0)
    assert seen(played)[0] == "[S]FFF\nFHFH\nFFFH\nHFFG"
    assert seen(played)[-1] == "  (Right)\nSFFF\nFHFH\nFFFH\nHFF[G]"
    assert [step.action for step in played.trajectory.steps] == [1, 1, 2, 2, 1, 2]


@pytest.mark.anyio
async def test_frozen_lake_is_crossed_by_calls() -> None:
    moves = [called("act", {"action": move}) for move in ("down", "down", "right", "fly", "right", "down", "right")]
    environment = lake(act="tool", picture=False)
    model = Answers(moves)
    played = await play(environment.example_row(), model=model, environment=environment)

    outputs = [item["output"] for item in played.trajectory.items if "output" in item]
    assert (played.reason, played.reward) == (StopReason.COMPLETED, 1.0)
    assert outputs[:3] == ["4", "8", "9"]
    assert "an action is one of left, down, right, up" in outputs[3]
    assert model.requests[0]["tools"][0]["parameters"]["properties"]["action"]["enum"] == list(environment.names)  # type: ignore[attr-defined]


@pytest.mark.anyio
async def test_the_rollouts_of_a_seeded_row_begin_alike_and_those_without_a_seed_do_not() -> None:
    taxi = Gymnasium.configured("taxi", {"id": "Taxi-v4"})
    begins = []
    for row in (taxi.example_row(), {**taxi.example_row(), "seed": None}):
        for seed in range(4):
            model = Answers(["south"])
            await play(row, model=model, environment=taxi, limits=Limits(max_turns=1), seed=seed)
            begins.append(last_seen(model.requests[0]))

    assert len(set(begins[:4])) == 1
    assert len(set(begins[4:])) > 1


@pytest.mark.anyio
async def test_a_taxi_ride_is_paid_step_by_step() -> None:
    taxi = Gymnasium.configured("taxi", {"id": "Taxi-v4", "show_reward": True})
    env: Any = gymnasium.make("Taxi-v4")
    start, _ = env.reset(seed=5)
    plan = shortest(env.unwrapped.P, int(start))
    names = ("south", "north", "east", "west", "pickup", "dropoff")

    played = await play(
        {**taxi.example_row(), "seed": 5},
        model=Answers([names[action] for action in plan]),
        environment=taxi,
        limits=Limits(max_turns=50),
    )

    assert played.reason is StopReason.COMPLETED
    assert played.reward == 20 - (len(plan) - 1)
    assert re.search(r"The taxi is in row \d, column \d.* The passenger is at [RGYB] and wants", seen(played)[0])
    assert seen(played)[1].endswith("Reward: -1")


def shortest(transitions: Any, start: int) -> list[int]:
    """The actions that end a ride soonest, by breadth-first search of Taxi's own transitions."""
    waiting: deque[tuple[int, list[int]]] = deque([(start, [])])
    known = {start}
    while waiting:
        state, plan = waiting.popleft()
        for action, [(_, following, _, done)] in transitions[state].items():
            if done:
                return [*plan, action]
            if following not in known:
                known.add(following)
                waiting.append((following, [*plan, action]))
    raise AssertionError("no way")


@pytest.mark.anyio
async def test_blackjack_is_played_by_its_description() -> None:
    blackjack = Gymnasium.configured("blackjack", {"id": "Blackjack-v1"})

    def decide(request: JsonObject) -> str:
        found = re.search(r"sum up to (\d+), with(?:out)? a usable ace\. The dealer shows \d+", last_seen(request))
        assert found, last_seen(request)
        return "hit" if int(found[1]) < 17 else "stick"

    rewards = []
    for row in blackjack.demo_rows(20, seed=1):
        played = await play(row, model=Answers(decide), environment=blackjack)
        assert played.reason is StopReason.COMPLETED
        rewards.append(played.reward)
    assert {-1.0, 1.0} <= set(rewards) <= {-1.0, 0.0, 1.0}


@pytest.mark.anyio
async def test_an_episode_that_gymnasium_cuts_is_truncated() -> None:
    environment = lake(kwargs={"is_slippery": False, "max_episode_steps": 3})
    played = await play(environment.example_row(), model=Answers(["left"] * 3), environment=environment)
    assert (played.reason, played.reward) == (StopReason.TRUNCATED, 0.0)


@pytest.mark.parametrize(
    ("space", "given", "action"),
    [
        (spaces.Discrete(3, start=1), "3", 3),
        (spaces.Discrete(3, start=1), " Stop! ", 2),
        (spaces.Discrete(3), 0, 0),
        (spaces.Box(-1, 1, (2,)), "[0.5, -1]", np.array([0.5, -1.0], np.float32)),
        (spaces.MultiDiscrete([2, 3]), [1, 2], np.array([1, 2])),
        (spaces.Text(5), "abc", "abc"),
        (spaces.Tuple((spaces.Discrete(2), spaces.Text(3))), '[1, "ab"]', (1, "ab")),
        (spaces.Dict({"go": spaces.Discrete(2)}), {"go": 1}, {"go": 1}),
    ],
)
def test_an_action_is_read_from_json_or_by_its_name(space: Any, given: object, action: object) -> None:
    np.testing.assert_equal(
        read_action(space, ("go", "stop", "wait") if isinstance(space, spaces.Discrete) else (), given), action
    )


@pytest.mark.parametrize(
    ("space", "given"),
    [
        (spaces.Discrete(3), "3"),
        (spaces.Discrete(3), "true"),
        (spaces.Discrete(3), "1.0"),
        (spaces.Discrete(3), "fly"),
        (spaces.Discrete(3), ""),
        (spaces.Discrete(3), None),
        (spaces.Discrete(3), "9" * 400),
        (spaces.Box(-1, 1, (2,)), "[0.5]"),
        (spaces.Box(-1, 1, (2,)), "[0.5, 7]"),
        (spaces.Box(-1, 1, (2,)), '{"a": 1}'),
        (spaces.MultiDiscrete([2, 3]), '["a", "b"]'),
        (spaces.Text(2), "abc"),
        (spaces.Text(2), 7),
        (spaces.Tuple((spaces.Discrete(2),)), "[1, 1]"),
        (spaces.Dict({"go": spaces.Discrete(2)}), "{}"),
    ],
)
def test_what_is_no_action_of_the_space_is_refused_with_what_would_be_one(space: Any, given: object) -> None:
    with pytest.raises(ValueError, match="an action is"):
        read_action(space, (), given)


def test_observations_of_every_kind_become_json() -> None:
    space = spaces.Dict({"a": spaces.Tuple((spaces.Discrete(3), spaces.Box(0, 1, (2,)))), "b": spaces.Text(4)})
    observation = {"a": (np.int64(2), np.array([0.5, 1.0], np.float32)), "b": "no"}
    assert as_json(space, observation) == {"a": [2, [0.5, 1.0]], "b": "no"}


def test_a_picture_marks_in_brackets_what_colours_mark() -> None:
    env = gymnasium.make("FrozenLake-v1", render_mode="ansi")
    env.reset(seed=0)
    assert picture(env).startswith("[S]FFF")
    env.close()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"id": "NoSuchLake-v1"}, "NoSuchLake"),
        ({}, "id: Field required"),
        ({"id": "FrozenLake-v1", "kwargs": {"map": 3}}, "unexpected keyword"),
        ({"id": "FrozenLake-v1", "actions": ["a", "b"]}, "actions names 2"),
    ],
)
def test_an_entry_that_gymnasium_cannot_make_is_disabled_with_the_reason(options: JsonObject, said: str) -> None:
    registry = load_registry([EnvironmentEntry(name="mine", adapter="gymnasium", **options)])
    assert said in str(registry.get("mine").error)
