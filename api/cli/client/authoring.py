"""`farm environments init`: write a package with a working environment and its test."""

from __future__ import annotations

import keyword
import re
from pathlib import Path

from gym.errors import Conflict, Invalid

_NAME = re.compile(r"^[a-z][a-z0-9]*([_-][a-z0-9]+)*$")

PYPROJECT = """\
[build-system]
requires = ["hatchling>=1.27"]
build-backend = "hatchling.build"

[project]
name = "@NAME@"
version = "0.1.0"
description = "An environment for the rollout farm."
requires-python = ">=3.11"
dependencies = []  # of the environment itself; installed beside rollout-farm

[project.entry-points."rollout_farm.environments"]
@NAME@ = "@MODULE@:@CLASS@"

[tool.hatch.build.targets.wheel]
packages = ["@MODULE@"]

[tool.pytest.ini_options]
pythonpath = ["."]
testpaths = ["tests"]
"""

MODULE = '''\
"""An environment for the rollout farm: its tasks, its tools, and the scoring of an episode."""

import random
from typing import Annotated, Any

from pydantic import Field

from gym.environments.base import Environment, Row, tool
from gym.reward import Reward
from gym.trajectory import Trajectory


class @CLASS@Row(Row):
    """Fields of a row beside its prompt; an invalid row is refused at submission."""

    target: Annotated[int, Field(ge=1, le=100, description="points to reach")]


class @CLASS@(Environment[@CLASS@Row]):
    """Roll a die until the sum reaches the target, then stop."""

    name = "@NAME@"
    row_model = @CLASS@Row
    # blocking = True  # if methods block, run them in a thread

    def setup(self) -> None:
        """Prepare the episode; may be `async def`, or left out. `close` is its counterpart."""
        self.dice = random.Random(self.seed)
        self.points = 0
        self.rolls = 0

    @tool
    def roll(self, times: Annotated[int, Field(ge=1, le=3, description="how often")] = 1) -> dict[str, int]:
        """Roll the die and return the new sum."""
        self.rolls += times
        self.points += sum(self.dice.randint(1, 6) for _ in range(times))
        return {"points": self.points}

    def verify(self, trajectory: Trajectory) -> Reward:
        """Score the episode: 1 if the target is reached and the sum stated."""
        reached = self.points >= self.row.target
        stated = str(self.points) in trajectory.final_text
        return Reward(float(reached and stated), {"reached": float(reached), "stated": float(stated)})

    @classmethod
    def example_row(cls) -> dict[str, Any]:
        """Return a row that can be run."""
        prompt = "Roll the die until the sum is at least 10, then say the sum."
        return {"responses_create_params": {"input": prompt}, "environment": cls.name, "target": 10}
'''

TEST = '''\
"""Episodes without a farm and without a model server, with scripted answers."""

import asyncio
import json

from @MODULE@ import @CLASS@

from gym.testing.answers import Answers, called
from gym.testing.episodes import PlayedEpisode, play


def played(model: Answers) -> PlayedEpisode:
    return asyncio.run(play(@CLASS@.example_row(), model=model, environment=@CLASS@, seed=1))


def test_reaching_the_target_and_stating_the_sum_is_rewarded() -> None:
    def answer(request):
        outputs = [json.loads(item["output"]) for item in request["input"] if "output" in item]
        points = outputs[-1]["points"] if outputs else 0
        return called("roll", {"times": 2}) if points < 10 else f"The sum is {points}."

    episode = played(Answers(answer))
    assert (episode.reward, episode.components) == (1.0, {"reached": 1.0, "stated": 1.0})


def test_giving_up_is_not_rewarded() -> None:
    assert played(Answers(["I would rather not."])).reward == 0.0


def test_an_invalid_argument_is_reported_to_the_model() -> None:
    episode = played(Answers([called("roll", {"times": 99}), "I stop."]))
    assert "less than or equal to 3" in episode.trajectory.tool_calls[0].output
'''

README = """\
# @NAME@

An environment for the rollout farm. The class is in `@MODULE@/__init__.py`, its test beside it in `tests/`.

    pip install -e .          # into the farm's environment; on every machine with workers
    pytest                    # episodes with scripted answers, without a farm
    farm environments @NAME@  # after a restart of the farm

Rows are JSON, one per line, as `@CLASS@.example_row` shows: `farm rows check rows.jsonl`, then
`farm submit rows.jsonl --environment @NAME@ --num-samples 8 --follow`.
"""


def write_package(name: str, into: Path) -> Path:
    """Write the package into a new folder and return its path. Raises Invalid, or Conflict if it exists."""
    module = name.replace("-", "_")
    if not _NAME.match(name) or keyword.iskeyword(module) or module in ("gym", "workers", "api"):
        raise Invalid("invalid_name", f"{name!r} is not a valid package name: use small letters, digits, - and _")
    folder = into / name
    if folder.exists():
        raise Conflict("folder_exists", f"{folder} already exists; nothing was written")
    words = {"@NAME@": name, "@MODULE@": module, "@CLASS@": "".join(map(str.capitalize, re.split("[_-]", name)))}
    files = {
        "pyproject.toml": PYPROJECT,
        "README.md": README,
        f"{module}/__init__.py": MODULE,
        f"tests/test_{module}.py": TEST,
    }
    for path, text in files.items():
        for word, value in words.items():
            text = text.replace(word, value)  # noqa: PLW2901  one word after the other
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    return folder
