"""`farm play`: one rollout in one process."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BROKEN = """
from gym.environments.base import Environment, tool


class Broken(Environment):
    \"\"\"Break where the row says.\"\"\"

    name = "broken"

    @tool
    def get_weather(self, city: str) -> str:
        \"\"\"Say how the weather is.\"\"\"
        secret = 4711
        if self.row.where == "tool":
            raise ZeroDivisionError(city)
        return "cold"

    def verify(self, trajectory):
        secret = 4711
        return 1 / (self.row.where != "verify")

    @classmethod
    def example_row(cls):
        return {"responses_create_params": {"input": "What is the weather like in Oslo?"}, "where": "nowhere"}
"""


@pytest.fixture
def broken(tmp_path: Path) -> list[str]:
    """Options for an environment that fails where its row says."""
    (tmp_path / "broken.py").write_text(BROKEN)
    (tmp_path / "farm.yaml").write_text(f"environments: ['{tmp_path}/broken.py:Broken']\n")
    return ["broken", "--config", str(tmp_path / "farm.yaml")]


def row(folder: Path, where: str) -> str:
    path = folder / "row.jsonl"
    path.write_text(
        json.dumps({"responses_create_params": {"input": "What is the weather like in Oslo?"}, "where": where})
    )
    return str(path)


def test_the_example_row_is_played_against_the_scripted_model_and_shown(run: Any) -> None:
    done = run("play", "weather")
    assert done.code == 0
    assert "get_weather" in done.out
    assert "The weather in San Francisco is cold." in done.out


def test_a_row_of_a_file_is_played(run: Any, broken: list[str], tmp_path: Path) -> None:
    done = run("play", *broken, "--row", row(tmp_path, "nowhere"), "--json")
    shown = json.loads(done.out)
    assert (done.code, shown["outcome"], shown["reward"], shown["tool_calls"]) == (0, "succeeded", 1.0, 1)


def test_a_verifier_that_raises_is_a_failed_rollout_with_its_conversation(
    run: Any, broken: list[str], tmp_path: Path
) -> None:
    done = run("play", *broken, "--row", row(tmp_path, "verify"))
    assert done.code == 1
    assert "verifier_error at verify" in done.out
    assert "ZeroDivisionError" in done.out
    assert "get_weather" in done.out


def test_an_environment_whose_judge_is_not_in_the_settings_says_which(run: Any) -> None:
    done = run("play", "essay_similarity")
    assert done.code == 1
    assert "there is no judge 'similarity'" in done.out


def test_an_unknown_environment_and_an_unknown_policy_are_refused(run: Any) -> None:
    assert "weather" in run("play", "wether").err
    assert run("play", "weather", "--policy", "nobody").code == 2
    assert run("play", "weather", "--policy", "http://127.0.0.1:9/v1").code == 2
    assert run("play", "weather", "--policy", "x", "--scripted").code == 2


@pytest.mark.parametrize("where", ["tool", "verify"])
def test_the_debugger_stops_where_the_environment_raises(broken: list[str], tmp_path: Path, where: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "api.cli.main", "play", *broken, "--row", row(tmp_path, where), "--pdb"],
        input="p secret + 1\nc\n",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "4712" in done.stderr
    assert done.returncode == (1 if where == "verify" else 0)
