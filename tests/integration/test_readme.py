"""What the README shows is what lies in the tree, and it runs."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from api.local.local_farm import LocalFarm

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "configs" / "examples"


@pytest.mark.parametrize("name", ["coin.py", "train.py"])
def test_the_readme_shows_the_examples_as_they_are(name: str) -> None:
    shown = (ROOT / "README.md").read_text()
    lines = (EXAMPLES / name).read_text().splitlines()
    assert "\n".join(f"    {line}" if line else "" for line in lines) in shown


def test_an_environment_of_your_own_takes_thirty_lines() -> None:
    assert len((EXAMPLES / "coin.py").read_text().splitlines()) <= 30


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 200


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
