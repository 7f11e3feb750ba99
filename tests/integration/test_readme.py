"""The README's examples match the files of the tree, and run."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from api.local.local_farm import LocalFarm

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "configs" / "examples"


def shown(text: str) -> str:
    return "\n".join(f"    {line}" if line else "" for line in text.splitlines())


@pytest.mark.parametrize("page", ["README.md", "docs/tutorial/first-environment.md"])
def test_the_environment_that_is_shown_is_the_example_as_it_is(page: str) -> None:
    assert shown((EXAMPLES / "coin.py").read_text()) in (ROOT / page).read_text()


def test_the_trainer_of_the_readme_is_a_part_of_the_example_in_ten_lines() -> None:
    section = (ROOT / "README.md").read_text().partition("## From a trainer")[2].partition("\n\nA reward")[0]
    excerpt = section.strip("\n")
    assert 5 <= len(excerpt.splitlines()) <= 10
    assert excerpt in shown((EXAMPLES / "train.py").read_text())


def test_an_environment_of_your_own_takes_thirty_lines() -> None:
    assert len((EXAMPLES / "coin.py").read_text().splitlines()) <= 30


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


@pytest.mark.parametrize("way", ["http", "redis"])
def test_the_trainers_example_runs_and_prints_every_rollout(
    farm: LocalFarm, new_client: Callable[..., str], way: str
) -> None:
    url = farm.url if way == "http" else new_client(farm.redis_url)
    done = subprocess.run(
        [sys.executable, EXAMPLES / "train.py", url, f"{farm.model_url}/v1"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 12
    assert all(" 1.0 {'min': 7, 'max': 7} " in line for line in lines)
