"""The golden texts of the parsers mean to vLLM's own parsers what the golden files say.

With `make test-vllm` vLLM is in a virtual environment of its own; run inside one that has vLLM, that one is asked.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
GOLDEN = HERE.parent / "contract/wire/parsers/golden"
PYTHON = HERE.parents[1] / ".venv-vllm/bin/python"
CASES = {
    f"{path.stem}-{case['name']}": case
    for path in sorted(GOLDEN.glob("*.json"))
    if path.stem != "tools"
    for case in json.loads(path.read_text())
}

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def answers() -> dict[str, Any]:
    """What vLLM makes of each case; one process for all, since its import takes most of the time."""
    python = sys.executable if importlib.util.find_spec("vllm") else str(PYTHON)
    if not Path(python).exists():
        pytest.skip("vLLM can be imported neither here nor in .venv-vllm: `make test-vllm` installs it")
    asked = {"tools": json.loads((GOLDEN / "tools.json").read_text()), "cases": CASES}
    ran = subprocess.run(
        [python, str(HERE / "parser_answers.py")], input=json.dumps(asked), capture_output=True, text=True, timeout=280
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    found: dict[str, Any] = json.loads(ran.stdout)["answers"]
    return found


@pytest.mark.parametrize("name", CASES)
def test_vllm_reads_the_text_as_the_golden_file_says(name: str, answers: dict[str, Any]) -> None:
    message = dict(CASES[name]["message"])
    if "tool_calls" in message:
        message["tool_calls"] = [call["function"] for call in message["tool_calls"]]
    assert answers[name] == {"message": message, "finish_reason": CASES[name]["finish_reason"]}
