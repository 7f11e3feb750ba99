"""The health check of the images, against a farm of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from api.local.local_farm import LocalFarm

SCRIPT = Path(__file__).parents[2] / "docker" / "health.py"


def health(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run the container's health check; `settings` are FARM_… variables."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FARM_")}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=60, env={**kept, **settings}
    )


@pytest.mark.parametrize("role", ["api", "proxy", "dispatcher", "worker"])
def test_a_role_that_runs_is_well(farm: LocalFarm, role: str) -> None:
    ports = {
        "FARM_API_PORT": farm.url.rpartition(":")[2],
        "FARM_PROXY_PORT": farm.proxy_url.split(":")[2].split("/")[0],
    }
    done = health(role, FARM_REDIS_URL=farm.redis_url, **ports)
    assert (done.returncode, done.stdout) == (0, f"{role}: alive\n"), done.stderr


@pytest.mark.parametrize("role", ["dispatcher", "worker", "judge-worker", "judge"])
def test_a_role_of_which_redis_knows_nothing_is_not_well(redis_url: str, role: str) -> None:
    done = health(role, FARM_REDIS_URL=redis_url)
    assert done.returncode == 1
    assert done.stdout.startswith(f"{role}: no")


@pytest.mark.parametrize("role", ["api", "worker"])
def test_a_role_that_does_not_answer_is_not_well(role: str) -> None:
    done = health(role, FARM_REDIS_URL="redis://127.0.0.1:1/0", FARM_API_PORT="1")
    assert done.returncode == 1
    assert "Error" in done.stdout


@pytest.mark.parametrize("role", ["dispatcher", "worker"])
def test_a_role_whose_redis_is_away_is_alive_and_not_ready(farm: LocalFarm, role: str) -> None:
    assert farm.url  # it runs
    away = {"FARM_REDIS_URL": "redis://127.0.0.1:1/0"}
    live, ready = health("--live", role, **away), health("--ready", role, **away)
    assert (live.returncode, live.stdout) == (0, f"{role}: alive\n"), live.stderr
    assert ready.returncode == 1
    assert "Error" in ready.stdout
