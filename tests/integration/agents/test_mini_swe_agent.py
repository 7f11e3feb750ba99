"""A harness as PyPI has it, unmodified: mini-swe-agent, started by the farm for a rollout, in its own environment."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from api.local.local_farm import LocalFarm, local_farm

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PACKAGES = ("mini-swe-agent==2.4.6", "litellm==1.106.2", "mcp")
TASK = """Write the product of 6 and 7 into answer.txt.
[[call bash {"command": "echo $((6*7)) > answer.txt && cat answer.txt"}]]
---
[[say It is 42.]]
[[call bash {"command": "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT && cat answer.txt"}]]
"""


@pytest.fixture(scope="module")
def mini() -> Iterator[Path]:
    """Its command."""
    with tempfile.TemporaryDirectory(prefix="mini-") as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([f"{folder}/bin/python", "-m", "pip", "install", "--quiet", *PACKAGES], check=True, timeout=800)
        yield Path(folder) / "bin" / "mini"


@pytest.fixture(scope="module")
def farm(mini: Path) -> Iterator[LocalFarm]:
    """A farm that knows it; the settings are those of docs/outside-agents.md."""
    argv = [
        str(mini),
        "-m",
        "openai/{model}",
        "-t",
        "{prompt}",
        "-y",
        "--exit-immediately",
        "-o",
        "{directory}/mini.json",
    ]
    silent = {
        "MSWEA_CONFIGURED": "true",
        "MSWEA_SILENT_STARTUP": "1",
        "MSWEA_COST_TRACKING": "ignore_errors",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }
    agents = {"mini": {"kind": "command", "argv": argv, "stdin": "none", "environment": silent}}
    settings = {
        "FARM_AGENTS": json.dumps(agents),
        "FARM_ENVIRONMENTS": json.dumps([f"{Path(__file__).with_name('said.py')}:Said"]),
    }
    with (
        tempfile.TemporaryDirectory(prefix="farm-mini-") as folder,
        local_farm(Path(folder), options=["--workers", "1", "--no-flower"], settings=settings) as started,
    ):
        yield started
        commands = [each.info["cmdline"] or [] for each in psutil.process_iter(["cmdline"])]
        assert [each for each in commands if str(mini) in each] == [], "it ends with its rollout"


def test_a_harness_from_pypi_runs_as_it_is_and_its_calls_are_the_trajectory(farm: LocalFarm) -> None:
    row = {"environment": "said", "agent": "mini", "responses_create_params": {"input": TASK}, "wanted": "42"}
    with httpx.Client(base_url=farm.url, timeout=70) as http:
        batch = http.post("/v1/batches", json={"rows": [row]}).json()["batch_id"]
        items = []
        for _ in range(5):
            if not items:
                items = http.get(f"/v1/batches/{batch}/results", params={"wait": "60", "view": "full"}).json()["items"]
    [result] = items
    assert (result["error"], result["reward"], result["model_calls"]) == (None, 1.0, 2)
    assert [item["type"] for item in result["response"]["output"]] == [
        "function_call",
        "function_call_output",
        "message",
        "function_call",
    ]
    assert "42" in result["response"]["output"][1]["output"]
    assert result["responses_create_params"]["input"][0]["content"].startswith("You are a helpful assistant")
    [segment] = result["segments"]
    assert 0 < sum(segment["loss_mask"]) < len(segment["token_ids"])
