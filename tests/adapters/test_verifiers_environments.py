"""Environments of the real package verifiers, which runs in a virtual environment of its own (`make test` makes it)."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from gym.environments.adapters.verifiers import Verifiers
from gym.environments.base import Environment
from gym.environments.registry import load_registry
from gym.environments.settings import EnvironmentEntry
from gym.errors import EnvironmentUnavailable, VerifierFailed
from gym.limits import Limits
from gym.processes.child import JsonLinesChild
from gym.rollout import StopReason
from gym.testing.answers import Answers, called, said
from gym.testing.episodes import PlayedEpisode, play

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-verifiers" / "bin" / "python"
FOLDER = str(Path(__file__).parent / "verifiers_environments")

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not PYTHON.exists(), reason="`make .venv-verifiers/.installed` makes what this needs"),
]


def options(kind: str) -> dict[str, Any]:
    return {"id": "farm-sums", "args": {"kind": kind}, "python": str(PYTHON), "path": [FOLDER]}


def opened(kind: str) -> Iterator[type[Environment[Any]]]:
    made = Verifiers.configured(f"sums_{kind}", options(kind))
    yield made
    made.child.close()


@pytest.fixture(scope="module")
def kinds() -> Iterator[dict[str, type[Environment[Any]]]]:
    """One of each kind; their processes start side by side, since importing verifiers takes seconds."""
    names = ("single", "multi", "tools")
    with ThreadPoolExecutor(3) as pool:
        made = dict(
            zip(names, pool.map(lambda kind: Verifiers.configured(f"sums_{kind}", options(kind)), names), strict=True)
        )
    yield made
    for each in made.values():
        each.child.close()


@pytest.fixture
def single(kinds: dict[str, type[Environment[Any]]]) -> type[Environment[Any]]:
    return kinds["single"]


@pytest.fixture
def multi(kinds: dict[str, type[Environment[Any]]]) -> type[Environment[Any]]:
    return kinds["multi"]


@pytest.fixture
def tools(kinds: dict[str, type[Environment[Any]]]) -> type[Environment[Any]]:
    return kinds["tools"]


async def played(environment: type[Environment[Any]], answers: Any, **limits: Any) -> tuple[PlayedEpisode, Answers]:
    model = answers if isinstance(answers, Answers) else Answers(answers)
    row = environment.example_row()
    return await play(row, model=model, environment=environment, limits=Limits(**limits)), model


async def test_a_single_turn_is_scored_by_each_function_of_the_rubric(single: type[Environment[Any]]) -> None:
    right, model = await played(single, ["<answer>5</answer>"])
    wrong, _ = await played(single, ["5"])

    assert model.requests[0]["input"] == [
        {"role": "system", "content": "Use tags."},
        {"role": "user", "content": "What is 2 + 3?"},
    ]
    assert (right.reason, right.reward) == (StopReason.COMPLETED, 1.5)
    assert right.components == {"correct": 1.0, "format_reward_func": 1.0, "num_turns": 1.0}
    assert wrong.reward < 0.5


async def test_many_rollouts_share_the_process_without_meeting(multi: type[Environment[Any]]) -> None:
    games = [played(multi, ["9", "1", "5"]) for _ in range(8)] + [played(multi, ["5"]) for _ in range(8)]
    results = await asyncio.gather(*games)

    assert [game.reward for game, _ in results] == [1.0] * 16
    assert [len(model.requests) for _, model in results] == [3] * 8 + [1] * 8


async def test_several_turns_show_what_the_environment_says(multi: type[Environment[Any]]) -> None:
    game, _ = await played(multi, ["9", "1", "5"])
    heard = [item["content"] for item in game.trajectory.items if item.get("role") == "user"]

    assert (game.reason, game.reward) == (StopReason.COMPLETED, 1.0)
    assert heard == ["Lower.", "Higher.", "Yes."]
    assert game.components["num_turns"] == 3


@pytest.mark.parametrize(
    ("answers", "limits", "reason"),
    [
        (["9", "9", "9", "9"], {}, StopReason.COMPLETED),
        (["9", "9"], {"max_turns": 2}, StopReason.MAX_TURNS),
        (Answers(["9"], finish="max_tokens"), {}, StopReason.MAX_TOKENS),
    ],
)
async def test_an_episode_that_a_limit_ends_is_scored_for_what_there_is(
    multi: type[Environment[Any]], answers: Any, limits: dict[str, Any], reason: StopReason
) -> None:
    game, model = await played(multi, answers, **limits)
    assert (game.reason, game.reward) == (reason, 0.0)
    assert game.components["num_turns"] == len(model.requests)


async def test_tools_are_offered_and_run_by_verifiers(tools: type[Environment[Any]]) -> None:
    game, model = await played(
        tools,
        [[said("I add."), called("add", {"a": 2, "b": 3}, "c1"), called("add", {"a": "x"}, "c2")], "It is 5."],
    )
    outputs = {item["call_id"]: item["output"] for item in game.trajectory.items if "output" in item}

    assert model.requests[0]["tools"][0]["name"] == "add"
    assert set(model.requests[0]["tools"][0]["parameters"]["properties"]) == {"a", "b"}
    assert outputs["c1"] == "5"
    assert "missing 1 required positional argument" in outputs["c2"]
    assert (game.reason, game.reward, game.components["add_calls"]) == (StopReason.COMPLETED, 1.0, 2.0)


@pytest.mark.slow
async def test_a_reward_function_that_raises_is_a_failure_and_no_zero() -> None:
    for made in opened("raising"):
        with pytest.raises(Exception, match="no such thing") as caught:
            await played(made, ["5"])
        assert isinstance(caught.value, VerifierFailed)


@pytest.mark.slow
async def test_a_process_that_is_killed_fails_its_rollout_for_another_attempt_which_gets_a_new_one() -> None:
    for made in opened("multi"):
        child: JsonLinesChild = made.child  # type: ignore[attr-defined]

        def kill(_: Any, child: JsonLinesChild = child) -> str:
            assert child._process is not None
            os.killpg(child._process.pid, signal.SIGKILL)
            child._process.wait(30)
            return "9"

        with pytest.raises(EnvironmentUnavailable, match="process"):
            await played(made, Answers(kill))
        game, _ = await played(made, ["5"])
        assert game.reward == 1.0


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        pytest.param(options("group"), "scores whole groups", marks=pytest.mark.slow),
        pytest.param(
            {**options("single"), "id": "not-installed"}, "Could not import 'not-installed'", marks=pytest.mark.slow
        ),
        ({**options("single"), "python": sys.executable}, "No module named 'verifiers'"),
        ({**options("single"), "python": "/no/such/python"}, "cannot be started"),
        ({"id": "farm-sums"}, "python: Field required"),
    ],
)
async def test_an_entry_that_cannot_be_run_is_disabled_with_the_reason(entry: dict[str, Any], said: str) -> None:
    registry = load_registry([EnvironmentEntry(name="mine", adapter="verifiers", **entry)])
    assert said in str(registry.get("mine").error)


async def test_rows_are_json_and_name_their_environment(single: type[Environment[Any]]) -> None:
    row = json.loads(json.dumps(single.example_row()))
    assert (row["environment"], row["example_id"], row["answer"]) == ("sums_single", 0, "5")
